"""`python -m benchmarks.arrival`: every task in a few tiny steps, what a run keeps, and how options are read."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.arrival import costs, race, rates
from benchmarks.arrival.__main__ import TASKS, main
from benchmarks.arrival.problems import Flip, Points, Teacher, rotation
from benchmarks.arrival.table import middle, refused
from benchmarks.arrival.training import mean_loss, train
from benchmarks.arrival.ways import CAYLEY, PLAIN, Options, accepted, ours
from rich.console import Console

from p4torch.errors import ArgumentError

#: Of products and norms in single precision.
ROUNDING = 1e-5


def run(out: Path, *arguments: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = main([*arguments, "--out", str(out)], console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def kept(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text("utf-8"))["tasks"]  # type: ignore[no-any-return]


TINY = ("--seeds", "0", "--steps-scale", "0.01", "--sizes", "32")


@pytest.mark.slow
def test_every_task_runs_with_the_defaults(tmp_path: Path) -> None:
    code, said = run(tmp_path, *TINY)
    assert code == 0 and "left" in said
    table = (tmp_path / "table.md").read_text("utf-8")
    assert set(kept(tmp_path)) == set(TASKS)
    for name, task in TASKS.items():
        records = kept(tmp_path)[name]["records"]
        assert records and not any("reason" in record for record in records), name
        assert f"## {name}. {task.title}" in table
    assert "p4.Orthogonal, defaults" in table and "| torch, Cayley map |" in table


def test_a_finished_task_is_kept(tmp_path: Path) -> None:
    first = ("--tasks", "a", "--seeds", "0", "--steps-scale", "0.01")
    assert run(tmp_path, *first)[0] == 0
    before = kept(tmp_path)["a"]
    (tmp_path / "table.md").unlink()
    code, said = run(tmp_path, *first)
    assert (tmp_path / "table.md").exists()
    assert code == 0 and "finished already" in said and kept(tmp_path)["a"] == before
    code, said = run(tmp_path, *first, "--p4", "rank=2,every=5")
    assert code == 2 and "--force" in said and kept(tmp_path)["a"] == before
    assert run(tmp_path, *first, "--p4", "rank=2,every=5", "--force")[0] == 0
    record = kept(tmp_path)["a"]["records"][0]
    assert record["way"] == "p4.Invertible, rank=2, every=5" and record["merged"] == 20 // 5


def test_one_side_alone(tmp_path: Path) -> None:
    assert run(tmp_path, "--tasks", "a,g", "--seeds", "0", "--steps-scale", "0.01", "--sides", "peers")[0] == 0
    assert [record["way"] for record in kept(tmp_path)["a"]["records"]] == ["plain"]
    assert kept(tmp_path)["g"]["records"] == []


@pytest.mark.parametrize(
    "options",
    [
        ("--tasks", "z"),
        ("--sides", "theirs"),
        ("--steps-scale", "0"),
        ("--steps-scale", "nan"),
        ("--seeds", "x"),
        ("--sizes", "1"),
        ("--p4", "rank"),
        ("--p4", "rank="),
    ],
)
def test_wrong_options_are_named(options: tuple[str, ...], tmp_path: Path) -> None:
    code, said = run(tmp_path, *options)
    assert code == 2 and options[0] in said and "must be" in said


def test_options_are_read_and_sorted() -> None:
    options = Options.of_text("block=32, every=2,directions=gradient,train_directions=False,optimizer_state=keep")
    assert options.perturb == {"block": 32, "directions": "gradient", "train_directions": False}
    assert options.schedule == {"every": 2, "optimizer_state": "keep"}
    assert str(Options.of_text("block=all,every=2")) == "block=all, every=2" and str(Options.of_text("")) == "defaults"
    with pytest.raises(ArgumentError, match="--p4"):
        Options.of_text("=3")
    assert accepted("Orthogonal", Options({"rank": 2}), 4) and not accepted("Orthogonal", Options({"rank": 0}), 4)
    assert not accepted("Orthogonal", Options({"nonsense": 2}), 4)


def test_given_options_are_tried_alone_and_by_all() -> None:
    given = [way.name for way in rates.ways(Options({"nonsense": 2}))]
    assert given == ["plain", *(f"p4.{kind}, nonsense=2" for kind in rates.KINDS)]
    shapes = [way.name for way in rates.ways(Options())]
    assert {"plain", *(f"p4.{kind}, defaults" for kind in rates.KINDS), "p4.Orthogonal, rank=8"} <= set(shapes)


# --- problems -------------------------------------------------------------------------------------------------


def test_starts_and_targets_are_what_they_say() -> None:
    for problem in (Flip(8, 3), Flip(8, 3, unit_determinant=True), Points(8, 3), Teacher(8, 3)):
        one, other = problem.model(), problem.model()
        assert torch.equal(one.weight, other.weight)  # type: ignore[arg-type]
        assert all(map(torch.equal, problem.batch(2), problem.batch(2)))
    with_determinant = Flip(8, 3, unit_determinant=True).model().weight.detach()
    assert float(torch.linalg.det(with_determinant)) == pytest.approx(1, abs=ROUNDING)
    assert float(torch.linalg.det(rotation(8, 3))) == pytest.approx(1, abs=ROUNDING)
    updated = Teacher(16, 3, target="update")
    assert updated.distance(updated.model()) == pytest.approx(0.1, abs=ROUNDING)
    turned = Teacher(16, 3, start="identity")
    assert torch.equal(turned.model().weight, torch.eye(16)) and turned.distance(turned.model()) > 1


# --- trainings ------------------------------------------------------------------------------------------------


def test_all_ways_start_alike_and_see_the_same_batches() -> None:
    ways = [PLAIN, CAYLEY, ours("Orthogonal", Options()), ours("LowRankUpdate", Options())]
    records = train(Teacher(8, 0), dict.fromkeys(ways, 1e-8), steps=23)
    assert [record["way"] for record in records] == [way.name for way in ways]
    for record in records:
        assert record["steps"] == 23 and record["loss"] == pytest.approx(records[0]["loss"], rel=1e2 * ROUNDING)


def test_a_training_stops_where_it_arrives() -> None:
    problem = Teacher(8, 0, start="identity")
    (record,) = train(problem, {PLAIN: 3e-2}, 2000, lambda model: problem.distance(model) < race.GOAL)
    assert record["arrived"] and record["steps"] < 2000


def test_what_fails_says_why_and_does_not_end_the_others() -> None:
    unknown, unusable = ours("Orthogonal", Options({"nonsense": 1})), ours("Orthogonal", Options({"rank": 0}))
    records = train(Teacher(8, 0), dict.fromkeys((unknown, PLAIN, unusable), 1e-2), steps=3)
    assert "nonsense" in records[0]["reason"] and "`rank`" in records[2]["reason"] and records[1]["steps"] == 3
    assert middle([records[0]], "loss") == records[0]["reason"] and refused([records[0]]) == "-"


def test_mean_losses() -> None:
    losses = [float(index) for index in range(200)]
    assert mean_loss(losses, 200) == 198.5 and mean_loss(losses, 20) == 18.5 and mean_loss(losses[:5], 5) == 4
    assert math.isinf(mean_loss([1.0, math.nan], 2))


# --- choices --------------------------------------------------------------------------------------------------


def test_the_best_rate_is_that_of_the_least_loss() -> None:
    records = [
        {"way": "some", "target": "rotation", "n": n, "rate": rate, "loss": loss}
        for n, losses in ((8, (3.0, 1.0, None)), (16, (1.0, 2.0, None)))
        for rate, loss in zip((1e-3, 1e-2, 1e-1), losses, strict=True)
    ]
    table = rates.table(records)
    assert "| some | 8 | 3 | 1 | not finite | 0.01 |  |" in table
    assert "| some | 16 | 1 | 2 | not finite | 0.001 | 10.0, bar missed |" in table


def test_below_rounding_the_first_to_arrive_is_best() -> None:
    slow = {"loss": 1e-13, "curve": [[15, 1e-3], [300, 1e-13]]}
    fast = {"loss": 1e-12, "curve": [[15, 1e-9], [300, 1e-12]]}
    assert rates.best_rate({(1e-3,): [slow], (1e-2,): [fast]}) == 1e-2
    assert rates.best_rate({(1e-3,): [{"loss": None, "curve": []}]}) is None


def test_the_race_prefers_arriving_and_fewer_steps() -> None:
    slow, fast = ({"rate": rate, "arrived": True, "steps": steps} for rate, steps in ((1e-3, 9), (1e-2, 5)))
    lost = {"rate": 1e-1, "arrived": False, "steps": 3, "loss": 1e-9}
    assert race.best_rate([slow, fast, lost]) == 1e-2
    assert race.best_rate([lost, {**lost, "rate": 1.0, "loss": None}, {"rate": 2.0, "reason": "none"}]) == 1e-1


def test_a_merge_comes_with_all_that_follows_it() -> None:
    side = costs.merge(ours("Orthogonal", Options.of_text("rank=2,directions=gradient,every=7")), 8, 4)
    for _ in range(3):
        side.prepare()
        side.call()
