"""`python -m experiments density` as users run it: in processes of its own where that matters."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.density.settings import FULL
from experiments.targets import TARGETS
from safetensors.torch import load_file
from tests.experiments.commands import ENVIRONMENT, call, start

TINY = ["--targets", "eight-gaussians", "--models", "p4inv", "--seeds", "0", "--batch", "16", "--lr", "0.01"]
WEIGHTS = "jobs/eight-gaussians-p4inv-seed0/weights.safetensors"


def test_help_and_list() -> None:
    assert "density" in call("--help").output
    shown = call("density", "--help").output
    assert "python -m experiments density --targets eight-gaussians,rings" in re.sub(r"\s+", " ", shown)
    assert f"Default: {FULL['steps']}." in shown and f"Default: {FULL['batch']}." in shown
    assert "--resume" in shown and "--tune" in shown
    listed = call("density", "--list").output
    assert all(name in listed for name in TARGETS) and "p4inv: P4Inv, rank 1, 1200 parameters" in listed


def test_help_does_not_wait_for_heavy_packages() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from experiments.cli import app;"
        "assert CliRunner().invoke(app, ['density', '--help']).exit_code == 0;"
        "print([name for name in ('pytorch_lightning', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--targets", "nine-gaussians"], "`targets` must be different names out of eight-gaussians"),
        (["--models", "glow"], "`models` must be different names out of rnvp, p4inv, whole, got glow"),
        (["--steps", "0"], "`steps` must be an integer >= 1, got 0"),
        (["--seeds", "a"], "`seeds` must be integers with commas between them, got 'a'"),
        (["--lr", "-1"], "`lr` must be a positive number, got -1.0"),
        (["--workers", "0"], "`workers` must be an integer >= 1, got 0"),
        (["--rates", "nowhere.json"], "`nowhere.json` must be a readable JSON file"),
        (["--short"], "`short` must be used with --demo"),
        (["--tune", "--lr", "0.1"], "`lr` must be left out with --tune, got 0.1"),
        (["--out", "file/run"], "`out` must be a folder that can be written, got file/run"),
        (["--out", "full"], "`out` must be a new or empty folder, got full, which is not empty (--resume"),
        (["--out", "full", "--resume"], "`out` must be the folder of a run (with a config.json), got full"),
    ],
)
def test_bad_input_is_one_line_before_any_training(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    result = call("density", *options)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ") and message in result.output and result.output.count("\n") == 1
    assert (tmp_path / "full" / "thesis.txt").exists() and not list(tmp_path.glob("*/config.json"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, "density", *TINY, "--steps", "400", "--out", "run")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "Figure: run/density.png" in output and "| eight-gaussians | p4inv | 1200" in output
    return folder / "run"


def test_a_run_leaves_its_results(whole: Path) -> None:
    names = {"config.json", "density.pdf", "density.png", "jobs", "metrics.json", "provenance.json", "table.md"}
    assert set(os.listdir(whole)) == names
    (row,) = json.loads((whole / "metrics.json").read_text())
    assert (row["target"], row["model"], row["parameters"]) == ("eight-gaussians", "p4inv", 1200)
    assert {"kl_mean", "kl_std", "leakage_mean", "leakage_std", "data_leakage", "inverse_residual"} <= set(row)
    record = json.loads((whole / "provenance.json").read_text())
    assert record["wall_seconds"] > 0 and record["seeds"] == [0] and record["threads"] == 1
    assert record["command"].startswith("python -m experiments density --targets")


def test_a_finished_run_is_not_trained_again(whole: Path) -> None:
    before = (whole / WEIGHTS).stat().st_mtime_ns, (whole / "metrics.json").read_text()
    result = call("density", "--out", str(whole), "--resume")
    assert result.exit_code == 0 and "start" not in result.output and "Figure" in result.output
    assert before == ((whole / WEIGHTS).stat().st_mtime_ns, (whole / "metrics.json").read_text())


def test_a_resume_with_other_options_is_refused(whole: Path) -> None:
    result = call("density", "--out", str(whole), "--resume", "--steps", "500")
    assert result.exit_code == 2 and "steps: expected 400, got 500" in result.output


def test_ctrl_c_leaves_a_checkpoint_and_resume_goes_on_exactly(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "density", *TINY, "--steps", "400", "--out", "run")
    log = tmp_path / "run/jobs/eight-gaussians-p4inv-seed0/checkpoint.pt"
    assert process.stdout is not None
    assert "start" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and to all of its processes
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "--resume" in output and "Traceback" not in output
    step = torch.load(log, weights_only=True)["step"]
    assert 0 < step < 400 and not (tmp_path / "run" / WEIGHTS).exists()

    resumed = start(tmp_path, "density", "--out", "run", "--resume")
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    expected, got = load_file(whole / WEIGHTS), load_file(tmp_path / "run" / WEIGHTS)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert "--resume" in record["command"] and "--resume" not in record["earlier"][0]["command"]


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, "density", *TINY, "--steps", "100000", "--out", "run")
    folder = tmp_path / "run/jobs/eight-gaussians-p4inv-seed0"
    wait_for(folder / "config.json")  # the job is under way
    process.kill()
    process.communicate()
    wait_for(folder / "checkpoint.pt")
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] < 10_000


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.1)


def test_tuning_writes_a_table_that_runs_can_read(tmp_path: Path) -> None:
    options = ["--targets", "rings", "--models", "p4inv", "--steps", "20", "--batch", "8", "--workers", "1"]
    result = call("density", "--tune", *options, "--out", str(tmp_path / "tuned"))
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "tuned" / "tune.json").read_text())
    lowest = min(table["rows"], key=lambda row: row["kl"])
    assert len(table["rows"]) == 4 and table["best"] == {"rings": {"p4inv": lowest["learning_rate"]}}


def test_a_demo_overwrites_the_demo_before_it_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    result = call("density", "--demo", "--out", str(tmp_path))
    assert result.exit_code == 2 and "new or empty folder" in result.output
    result = call("density", "--demo", "--out", str(whole))  # a run, but no demo
    assert result.exit_code == 2 and (whole / "metrics.json").exists()


def test_a_job_that_fails_is_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    job = tmp_path / "jobs" / "eight-gaussians-p4inv-seed0"
    job.mkdir(parents=True)
    (job / "checkpoint.pt").write_text("not a checkpoint")
    result = call("density", "--out", str(tmp_path), "--resume")
    assert result.exit_code == 1
    assert "Error: eight-gaussians p4inv seed 0: `" in result.output and "checkpoint.pt` must be" in result.output
    assert (job / "checkpoint.pt").read_text() == "not a checkpoint"


@pytest.mark.parametrize(
    ("damage", "message"),
    [({"targets": 5}, "`targets` must be names out of"), ({"steps": "5"}, "`steps` must be an integer >= 1")],
)
def test_a_damaged_configuration_is_one_line(tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    stored: dict[str, Any] = {
        "targets": ["two-moons"],
        "models": ["rnvp"],
        "seeds": [0],
        "steps": 5,
        "batch": 8,
        "every": 2,
    }
    stored["learning_rates"] = {"two-moons": {"rnvp": 0.01}}
    (tmp_path / "config.json").write_text(json.dumps({**stored, **damage}))
    result = call("density", "--resume", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert message in result.output


def test_a_seed_beyond_all_generators(tmp_path: Path) -> None:
    result = call("density", "--seeds", "9" * 25, "--out", str(tmp_path / "new"))
    assert result.exit_code == 2
    assert "`seeds` must be different integers from 0 to 2³¹ - 1" in result.output
    assert not (tmp_path / "new").exists()
