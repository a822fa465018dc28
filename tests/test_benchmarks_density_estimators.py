"""`python -m benchmarks.density_estimators`: cells are kept, the same command goes on, wrong options are refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from benchmarks.density_estimators.__main__ import main
from benchmarks.density_estimators.problems import moons, toy
from rich.console import Console

pytest.importorskip("sklearn")


def run(*arguments: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = main(arguments, console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_finished_cells_are_kept(tmp_path: Path) -> None:
    options = ("--problems", "wine", "--steps", "3", "--look", "2", "--rounds", "1", "--out", str(tmp_path))
    code, _ = run(*options, "--ways", "p4 MixingFlow")
    assert code == 0
    first = json.loads((tmp_path / "metrics.json").read_text())["cells"]
    assert {"wine/times", "wine/p4 MixingFlow/0"} == first.keys()
    code, text = run(*options, "--ways", "p4 MixingFlow,p4 RealNVP")
    assert code == 0 and "2 of 3 cells are there" in text
    second = json.loads((tmp_path / "metrics.json").read_text())["cells"]
    assert {name: second[name] for name in first} == first
    assert "| p4 RealNVP |" in (tmp_path / "table.md").read_text()
    code, text = run(*options, "--steps", "4")
    assert code == 2 and "take another --out" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--problems", "nothing"), "--problems"), (("--steps", "0"), "positive"), (("--ways", "p4"), "--ways")],
)
def test_wrong_options(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, text = run(*arguments, "--out", str(tmp_path))
    assert code == 2 and message in text


def test_batches_are_a_pure_function_of_seed_and_step() -> None:
    for problem in (toy(), moons()):
        one, same, other = (problem.batch(0, 3), problem.batch(0, 3), problem.batch(1, 3))
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert not torch.equal(one[0], other[0])
        assert len(one) == (2 if problem.context_features else 1)
