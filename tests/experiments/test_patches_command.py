"""`python -m experiments patches` as users run it: in processes of its own where that matters."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from tests.experiments.commands import call, start

pytest.importorskip("sklearn")

from experiments.patches.config import Config
from experiments.patches.models import MODELS

TINY = ["--models", "dense,p4inv", "--ranks", "1", "--every", "5", "--directions", "random", "--seeds", "0"]
TINY += ["--layers", "2", "--batch", "16", "--lr", "0.01"]


def test_help_has_an_example_and_the_true_defaults() -> None:
    shown = call("patches", "--help").output
    config = Config()
    assert "python -m experiments patches --ranks 2,8" in " ".join(shown.split())
    for default in (config.steps, config.tune_steps, config.batch, config.layers, config.optimizer_state):
        assert f"Default: {default}." in shown
    for values in (config.ranks, config.every, config.blocks, config.seeds, config.learning_rates):
        assert f"Default: {','.join(f'{value:g}' for value in values)}." in shown
    assert ",".join(MODELS) in shown


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ranks", "a"], "`ranks` must be integers with commas between them, got 'a'"),
        (["--lr", "fast"], "`lr` must be numbers with commas between them, got 'fast'"),
        (["--workers", "0"], "`workers` must be an integer >= 1, got 0"),
        (["--models", "glow"], "`models` must be different names"),
    ],
)
def test_bad_input_is_one_line_before_any_training(options: list[str], message: str, tmp_path: Path) -> None:
    result = call("patches", *options, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2 and message in result.output and result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_is_stopped_by_ctrl_c_resumed_and_leaves_its_results(tmp_path: Path) -> None:
    process = start(tmp_path, "patches", "--out", "run", *TINY, "--steps", "750", "--workers", "1")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/jobs/*.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and to all of its processes
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "1 of 2 jobs done; go on with --resume" in output, output
    assert "Traceback" not in output
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/jobs/*.json")}

    output, _ = start(tmp_path, "patches", "--out", "run", "--resume").communicate(timeout=120)
    assert "Figure: run/patches.png" in output, output
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items()) and len(kept) == 1
    names = {"clock.json", "config.json", "jobs", "metrics.json", "patches.pdf", "patches.png", "provenance.json"}
    assert set(os.listdir(tmp_path / "run")) == {*names, "table.md"}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [row["model"] for row in metrics["rows"]] == ["dense", "p4inv"] and metrics["gaussian"] > 0
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert "scikit-learn" in record["versions"] and len(record["earlier"]) == 1
