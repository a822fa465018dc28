"""The command line `p4torch`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import p4torch
from p4torch.cli import app, doctor, molecule
from p4torch.cli.output import spelled

PROGRAM = "from p4torch.cli import app; app(prog_name='p4torch')"


def call(*arguments: str):
    """The command in this process."""
    return CliRunner(env={"TERMINAL_WIDTH": "200", "NO_COLOR": "1"}).invoke(app, list(arguments))


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})


def test_help_and_version() -> None:
    assert call("--version").output == f"p4torch {p4torch.__version__}\n"
    shown = call("--help").output
    assert "molecule" in shown and "density" not in shown and "doctor" in shown and "--install-completion" in shown


@pytest.mark.parametrize("command", [(), ("molecule",), ("doctor",), ("molecule", "fit"), ("molecule", "sample")])
def test_a_short_h_helps_everywhere(command: tuple[str, ...]) -> None:
    short, long = (call(*command, option) for option in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0 and short.output == long.output and "Usage" in short.output


@pytest.mark.parametrize(
    "arguments", [["--help"], ["molecule", "fit", "--help"], ["--version"], ["molecule", "simulate", "--nothing"]]
)
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        f"import sys\nfrom p4torch.cli import app\ntry: app({arguments})\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'openmm', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_choices_are_in_the_help() -> None:
    simulate, fit = (" ".join(call("molecule", name, "--help").output.split()) for name in ("simulate", "fit"))
    assert "[biased|tempered]" in simulate and "Reference|CPU|CUDA" in simulate
    assert "[check|quick|paper]" in fit
    assert all(model in fit for model in molecule.MODELS)


def test_choices_are_those_that_are_taken() -> None:
    pytest.importorskip("openmm")
    from p4torch.molecules.command import METHODS
    from p4torch.molecules.generator.architectures import architecture
    from p4torch.molecules.generator.presets import PRESETS

    assert set(molecule.METHODS) == set(METHODS) and set(molecule.PRESETS) == set(PRESETS)
    assert [architecture(model).name for model in molecule.MODELS] == list(molecule.MODELS)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("p4torch mol", {"molecule"}),
        ("p4torch molecule s", {"simulate", "sample"}),
        ("p4torch molecule simulate --method t", {"tempered"}),
        ("p4torch molecule fit --preset ", {"check", "quick", "paper"}),
        ("p4torch molecule fit --models rnvp,spl", {"rnvp,spline", "rnvp,spline-p4inv"}),
    ],
)
def test_shells_complete_commands_and_choices(typed: str, completed: set[str]) -> None:
    words = typed.split(" ")
    done = program(
        _P4TORCH_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1), _TYPER_COMPLETE_TESTING="1"
    )
    assert set(done.stdout.decode().split()) == completed, done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("arguments", [("molecule", "fit", "--help"), ("molecule", "simulate", "--help")])
def test_help_can_be_read_in_any_encoding(encoding: str, arguments: tuple[str, ...]) -> None:
    done = program(*arguments, PYTHONIOENCODING=encoding, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    shown = done.stdout.decode(encoding)
    assert ("sqrt rank" in " ".join(shown.split())) == (encoding != "utf-8" and "fit" in arguments)


@pytest.mark.parametrize(
    ("text", "encoding", "written"),
    [
        ("ΔF −1.50 ± 0.02 kT", "ascii", b"dF -1.50 +- 0.02 kT"),
        ("ΔF −1.50 ± 0.02 kT", "cp1252", b"dF -1.50 \xb1 0.02 kT"),
        ("0 to 2.4 rad (0° to 138°), φ ≥ 10⁶ ™ 水", "ascii", b"0 to 2.4 rad (0 deg to 138 deg), phi >= 106 TM ?"),
    ],
)
def test_what_cannot_be_shown_is_spelled(text: str, encoding: str, written: bytes) -> None:
    import codecs

    codecs.register_error("test.spelled", spelled)
    assert text.encode(encoding, "test.spelled") == written


def test_doctor_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("doctor")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    for start in (
        f"p4torch {p4torch.__version__}, Python",
        "torch: torch",
        "extra experiments: ",
        "devices",
        "threads",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert lines[-1] == "All is well." and sum(line.startswith("self-test") for line in lines) == len(doctor.TESTS)


def test_doctor_tells_of_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise OSError("no such library")

    monkeypatch.setattr(doctor, "TESTS", {"energies": broken, "files": doctor.TESTS["files"]})
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    result = call("doctor")
    assert result.exit_code == 1
    assert "self-test, energies: FAILED: OSError: no such library" in result.output
    assert "torch 0.1 is older than 2.6" in result.output and 'pip install "p4torch[molecules]"' in result.output
    assert "self-test, files: " in result.output


@pytest.mark.parametrize("arguments", [["density", "--steps", "5"], ["linear"], ["patches", "--help"]])
def test_experiments_that_have_moved_are_told(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert f"python -m experiments {arguments[0]}" in result.output and result.output.count("\n") == 1


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; import p4torch.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == 'Error: this command needs more than torch: pip install "p4torch[experiments]"\n'
