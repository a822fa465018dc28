"""The recurrent example: its cell against the reference implementation, its tasks, a short run from end to end."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.layers import Missing
from examples.recurrent import EVERY, SETTINGS, SHORT, Learner, Setting, all_rates, ranked, tune
from examples.recurrent_methods import METHODS, Method
from examples.recurrent_network import recurrence, recurrence_reference, rotations
from examples.recurrent_report import SOLVED
from examples.recurrent_tasks import Copying, Digits
from examples.scaffold import Row
from rich.console import Console
from torch import nn

from examples import recurrent, scaffold
from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint
from p4torch.runs.folder import read_json

ROUNDING = 1e-5  # of float32 matrices that are set, and set back


def short(task: str = "copying") -> Setting:
    setting = replace(SETTINGS[task], **SHORT)  # type: ignore[arg-type]
    return replace(setting, task=Copying(delay=20)) if task == "copying" else setting


def present() -> list[Method]:
    return [method for method in METHODS if method.peer is None or find_spec(method.peer)]


def test_the_cell_is_its_reference() -> None:
    weight = rotations(6).double().requires_grad_()
    x = torch.randn(5, 3, 6, dtype=torch.float64).requires_grad_()
    threshold = torch.empty(6, dtype=torch.float64).uniform_(-0.3, 0.3).requires_grad_()
    got, expected = recurrence(weight, x, threshold), recurrence_reference(weight, x, threshold)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)  # float64 sums of six products
    g = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad(got, (weight, x, threshold), g),
        torch.autograd.grad(expected, (weight, x, threshold), g),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # and of 15 of those


def test_rotations_are_orthogonal() -> None:
    matrix = rotations(8).double()
    torch.testing.assert_close(matrix.mT @ matrix, torch.eye(8).double(), rtol=0, atol=1e-6)  # made in float32


def test_copying_asks_for_what_it_showed() -> None:
    task = Copying(delay=30)
    x, y = task.batch(seed=0, step=4, size=7)
    assert x.shape == y.shape == (50, 7)
    assert torch.equal(x[:10], y[-10:]) and (x[:10] >= 1).all() and (x[:10] <= 8).all()
    assert not x[10:-11].any() and (x[-11] == 9).all() and not x[-10:].any() and not y[:-10].any()
    assert task.baseline == pytest.approx(10 * math.log(8) / 50)


def test_batches_are_functions_of_seed_and_step() -> None:
    for task in (Copying(delay=5), Digits()):
        x, y = task.batch(3, 8, 6)
        again, other = task.batch(3, 8, 6), task.batch(3, 9, 6)
        assert torch.equal(x, again[0]) and torch.equal(y, again[1]) and not torch.equal(y, other[1])


def test_digits_are_sequences_of_pixels() -> None:
    x, y = Digits().batch(0, 0, 5)
    assert x.shape == (64, 5) and y.shape == (5,) and x.min() >= 0 and x.max() <= 1
    loss, right = Digits().held_out(Digits().network(8))
    assert loss > 0 and 0 <= right <= 1


@pytest.mark.parametrize("method", present(), ids=lambda method: method.name)
def test_every_method_starts_from_the_same_network_and_trains(method: Method) -> None:
    setting = short()
    fit = Learner(setting, method, (1e-3, 1e-3), seed=3)
    torch.manual_seed(3)
    plain = setting.task.network(setting.hidden)
    torch.testing.assert_close(fit.model.recurrent.detach(), plain.recurrent.detach(), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(fit.model.input, plain.input)
    before = fit.model.recurrent.detach().clone()
    for _ in range(EVERY):
        fit.advance()
    moved = not torch.equal(before, fit.model.recurrent.detach())
    assert moved == method.trains
    assert fit.row()["defect"] < ROUNDING or method.name == "free"


@pytest.mark.parametrize("name", ["p4", "p4-blocks", "cayley"])
def test_the_matrix_is_formed_once_a_step(name: str) -> None:
    fit = Learner(short(), named(name), (1e-3, 1e-3), 0)
    calls: list[nn.Module] = []
    fit.model.parametrizations.recurrent[0].register_forward_hook(lambda module, *_: calls.append(module))
    fit.advance()
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["p4", "p4-blocks", "cayley"])
def test_a_resume_is_exact(name: str, tmp_path: Path) -> None:
    method = next(method for method in METHODS if method.name == name)
    straight, resumed = (Learner(short(), method, (1e-3, 1e-3), 0) for _ in range(2))
    for _ in range(9):  # just before a merge of the blocks
        straight.advance()
    save_checkpoint(tmp_path / "state.pt", straight.state_dict())
    resumed.load_state_dict(load_checkpoint(tmp_path / "state.pt"))
    for fit in (straight, resumed):
        for _ in range(6):
            fit.advance()
    for one, other in zip(straight.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert [point[2] for point in straight.curve] == [point[2] for point in resumed.curve]


def named(name: str) -> Method:
    return next(method for method in METHODS if method.name == name)


def test_the_best_rates_have_the_least_loss_of_the_last_rung() -> None:
    tuned: list[Row] = [
        {"method": "free", "rates": [1e-3, 1e-3], "steps": 10, "tuning_loss": 0.1},
        {"method": "free", "rates": [1e-3, 1e-3], "steps": 20, "tuning_loss": math.inf},
        {"method": "free", "rates": [1e-4, 3e-3], "steps": 20, "tuning_loss": 0.2},
        {"method": "matrix_exp", "rates": [1e-5, 1e-3], "steps": 20, "tuning_loss": 0.1},
    ]
    assert ranked(named("free"), tuned) == [(1e-4, 3e-3), (1e-3, 1e-3)]
    assert ranked(named("geotorch"), tuned) == [(1e-5, 1e-3)]


def test_all_methods_are_tuned_over_the_same_pairs() -> None:
    pairs = [(rate, rest) for rate in SHORT["rates"] for rest in SHORT["rest_rates"]]  # type: ignore[attr-defined]
    for method in METHODS:
        assert all_rates(short(), method) == (pairs if method.trains else [(0.0, 1e-3), (0.0, 3e-3)])


def test_half_of_the_pairs_go_on(tmp_path: Path) -> None:
    tuned = tune(short(), [named("p4"), named("frozen")], tmp_path, Console(quiet=True))
    counted = Counter((row["method"], row["steps"]) for row in tuned)
    assert counted == {("p4", 10): 4, ("p4", 20): 2, ("frozen", 10): 2, ("frozen", 20): 1}
    first = sorted((row for row in tuned if row["steps"] == 10), key=lambda row: row["tuning_loss"])
    assert {tuple(row["rates"]) for row in tuned if row["method"] == "p4" and row["steps"] == 20} == {
        tuple(row["rates"]) for row in [row for row in first if row["method"] == "p4"][:2]
    }


def test_a_task_is_solved_when_the_mean_of_the_last_losses_is_below_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Learner(short(), named("p4"), (1e-3, 1e-3), 0)
    goal = SOLVED * fit.task.baseline
    losses = iter([5 * goal, *[0.9 * goal] * (2 * EVERY)])
    monkeypatch.setattr(fit, "_move", lambda batch: torch.tensor(next(losses)))
    for _ in range(EVERY):
        fit.advance()
    assert fit.solved is None
    for _ in range(EVERY):
        fit.advance()
    assert fit.solved is not None and fit.solved[0] == EVERY + 1


TINY = {**SHORT, "steps": 20, "rungs": (10,), "rates": (1e-3,), "rest_rates": (1e-3,)}


@pytest.mark.parametrize("task", ["copying", "digits"])
def test_a_short_run_without_a_peer(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(package: str) -> Any:
        raise Missing(f"peer {package} is missing: row left out")

    monkeypatch.setattr(scaffold, "load", missing)
    monkeypatch.setattr(recurrent, "SHORT", TINY)
    out = tmp_path / "run"
    assert recurrent.main([task, "--short", "--seeds", "1", "--out", str(out)]) == 0
    assert "geotorch is missing" in capsys.readouterr().out
    got = {row["method"] for row in read_json(out / "metrics.json")["jobs"]}
    assert got == {method.name for method in METHODS} - {"geotorch", "p4-32"}
    assert (out / "recurrent.png").exists() and (out / "recurrent.pdf").exists()


def test_a_short_run_that_is_killed_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "SHORT", {**TINY, "steps": 40})
    monkeypatch.setattr(recurrent, "METHODS", (METHODS[0], METHODS[2]))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    command = ["copying", "--short", "--seeds", "1", "--out"]
    assert recurrent.main([*command, str(straight)]) == 0
    advance, calls = Learner.advance, 0

    def dying(fit: Learner) -> None:
        nonlocal calls
        calls += 1
        if calls > 20 + 50 + 7:  # the tuning, a turn of both, and a part of the next
            raise KeyboardInterrupt
        advance(fit)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "advance", dying)
        assert recurrent.main([*command, str(killed)]) == 130
    assert recurrent.main([*command, str(killed), "--resume"]) == 0
    one, other = (read_json(out / "metrics.json")["jobs"] for out in (straight, killed))
    for name in ("method", "rates", "loss", "held_out_loss", "defect", "merged"):
        assert [row[name] for row in one] == [row[name] for row in other]
