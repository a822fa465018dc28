"""`p4torch molecule` as users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.molecules.small_molecules import SMALL, residue_of, small_files
from tests.molecules.systems import pdb_of
from typer.testing import CliRunner

from p4torch.cli import app
from p4torch.molecules import MolecularSystem, ReferenceData, command, load_frames


def call(*arguments: str):
    return CliRunner(env={"TERMINAL_WIDTH": "200", "NO_COLOR": "1"}).invoke(app, ["molecule", *arguments])


def program(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    code = "from p4torch.cli import app; app(prog_name='p4torch')"
    return subprocess.Popen(
        [sys.executable, "-c", code, "molecule", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_same_data(tmp_path: Path) -> None:
    """kill -9 of everything in mid-production, then --resume: every byte as without it."""
    options = ["simulate", "--nanoseconds", "0.2", "--adaptation-ns", "0.02", "--walkers", "2", "--workers", "1"]
    options += ["--save-ps", "0.05", "--seed", "3"]
    whole = program(tmp_path, *options, "--out", "whole")
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0 and "effective" in said
    cut = program(tmp_path, *options, "--out", "cut")
    for _ in range(600):
        if (tmp_path / "cut" / "walkers" / "0" / "state.pt").exists():
            break
        time.sleep(0.1)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.communicate()
    assert not (tmp_path / "cut" / "train").exists()
    refused = program(tmp_path, *options, "--out", "cut")
    assert "--resume goes on" in refused.communicate(timeout=100)[0] and refused.returncode == 2
    again = program(tmp_path, *options, "--out", "cut", "--resume")
    assert again.communicate(timeout=300)[0] and again.returncode == 0
    for part in ("train", "held_out"):
        one, other = (ReferenceData.load(tmp_path / name, part) for name in ("whole", "cut"))
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_allclose(one.weights, other.weights)
    result = call("resample", str(tmp_path / "cut"), str(tmp_path / "flat.dcd"), "--frames", "50")
    assert result.exit_code == 0, result.output
    assert load_frames(tmp_path / "flat.dcd", MolecularSystem.alanine_dipeptide()).shape == (50, 22, 3)


@pytest.mark.slow
def test_ctrl_c_stops_at_a_checkpoint(tmp_path: Path) -> None:
    run = program(tmp_path, "simulate", "--method", "tempered", "--replicas", "2", "--ladders", "1", "--out", "run")
    for _ in range(600):
        if (tmp_path / "run" / "ladders" / "0" / "state.pt").exists():
            break
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and "go on with --resume" in said and "Traceback" not in said


@pytest.mark.slow
def test_noise_of_another_molecule(tmp_path: Path) -> None:
    pdb = str(pdb_of("cysteine-dipeptide"))
    result = call(
        "noise",
        pdb,
        "--temperatures",
        "300",
        "--nanoseconds",
        "0.02",
        "--out",
        str(tmp_path / "noise"),
        "--workers",
        "1",
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "noise" / "noise.json").read_text())
    assert row["shift_kT"] > 10 and "300 K: mean energy" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["simulate", "missing.pdb"], "`path` must be"),
        (["simulate", "--forcefield", "amber96.xml"], "`pdb` must be given with --forcefield"),
        (["simulate", "--method", "magic"], "`method` must be biased or tempered"),
        (
            ["simulate", "--method", "tempered", "--torsions", "phi"],
            "`torsions` must be left out with --method tempered",
        ),
        (["simulate", "--torsions", "omega"], "`torsions` must be"),
        (["simulate", "--temperature", "0"], "`temperature` must be"),
        (["simulate", "--workers", "0"], "`workers` must be an integer >= 1"),
        (["resample", "nowhere", "out.dcd"], "`run` must be a folder of finished reference data"),
        (["noise", "--temperatures", "hot"], "`temperatures` must be numbers with commas"),
        (["noise", "--temperatures", "300,-1"], "`temperature` must be a number > 0"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*options)
    assert result.exit_code == 2
    assert f"Error: {message}" in result.output and "Traceback" not in result.output


TINY = ["simulate", "--short", "--walkers", "2", "--nanoseconds", "0.004", "--adaptation-ns", "0.004", "--workers", "1"]


@pytest.mark.slow
def test_results_are_told_whole_in_other_encodings_without_noise(tmp_path: Path) -> None:
    """On a terminal of Windows in western Europe, and on one of no locale; the last line names what was written."""

    def said(encoding: str, *arguments: str) -> list[str]:
        code = "from p4torch.cli import app; app(prog_name='p4torch')"
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "60", "PYTHONUTF8": "0", "LC_ALL": "C"}
        done = subprocess.run(
            [sys.executable, "-c", code, "molecule", *arguments], cwd=tmp_path, capture_output=True, env=environment
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        return done.stdout.decode(encoding).splitlines()

    lines = said("cp1252", *TINY, "--seed", "3", "--out", "run")
    assert lines[-1] == f"Summary: {Path('run') / 'summary.json'}" and (tmp_path / "run" / "summary.json").exists()
    assert "dF" in lines[-3] and "dcdplugin" not in "".join(lines)
    assert said("ascii", "resample", "run", "flat.dcd", "--frames", "5") == ["5 frames of equal weight: flat.dcd"]
    assert (tmp_path / "flat.dcd").exists()


@pytest.mark.parametrize("arguments", [["simulate"], ["simulate", "--method", "tempered"], ["fit"]])
def test_a_dry_run_tells_the_cost_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments, "--dry-run", "--workers", "2")
    assert result.exit_code == 0, result.output
    first = result.output.splitlines()[0]
    cost = re.fullmatch(
        r"Dry run, nothing is written: about (.+) with 2 processes, ([\d.]+) [MG]B of memory, [\d.]+ [MG]B of disk",
        first,
    )
    assert cost is not None and float(cost[2]) > 0 and re.search("min|h", cost[1])
    assert os.listdir(tmp_path) == []


def test_a_long_run_says_so_in_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "simulate", lambda *request, **options: None)
    result = call("simulate", "--nanoseconds", "1000", "--out", str(tmp_path / "run"))
    first, second, *_, last = result.output.splitlines()
    assert re.match(r"This takes about \d+ h \d+ min with .* Ctrl-C stops it at a checkpoint, --resume goes on", first)
    assert second.startswith("MolecularSystem(") and last == f"Summary: {tmp_path / 'run' / 'summary.json'}"
    for short in (["--short"], ["--nanoseconds", "1000", "--resume"]):
        assert "This takes" not in call("simulate", *short, "--out", str(tmp_path / "run")).output


def test_quiet_commands_say_nothing_and_verbose_ones_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "simulate", lambda *request, **options: None)
    out = ["--out", str(tmp_path / "run")]
    assert call("simulate", "--short", "-q", *out).output == ""
    first = call("simulate", "--short", "-v", *out).output.splitlines()[0]
    assert "Python" in first and "torch" in first and "threads of" in first
    refused = call("simulate", "--method", "magic", "-q", *out)
    assert refused.exit_code == 2 and refused.output.startswith("Error: `method` must be biased or tempered")
    assert "ArgumentError" in call("simulate", "--method", "magic", "--verbose", *out).output


@pytest.mark.parametrize("name", SMALL)
def test_an_unknown_molecule_is_told_how_to_go_on(tmp_path: Path, name: str) -> None:
    pdb, _ = small_files(name, tmp_path)
    result = call("simulate", str(pdb), "--short", "--out", str(tmp_path / "run"))
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert f"no {residue_of(name)}" in result.output and "--system-xml" in result.output
    assert "Hydrogens are missing" not in result.output


def test_ambiguous_torsions_are_refused_with_their_names() -> None:
    result = call("simulate", str(pdb_of("met-enkephalin")), "--torsions", "phi")
    assert result.exit_code == 2 and "phi:2, phi:3, phi:4, phi:5" in result.output


def test_help_has_an_example() -> None:
    for name in ("simulate", "resample", "noise"):
        assert f"p4torch molecule {name}" in call(name, "--help").output
