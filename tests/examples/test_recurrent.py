"""The recurrent example: its cell against the readable twin, its tasks, a short run from end to end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from examples.recurrent import ALPHABET, COPIED, SHORT, Copying, Digits, Learner, Variant
from examples.recurrent_network import Network, readable_recurrence, recurrence, rotations

from examples import recurrent
from p4torch.training import load_checkpoint, save_checkpoint
from p4torch.training.folder import read_json


def test_the_cell_is_its_twin() -> None:
    weight = rotations(6).double().requires_grad_()
    x = torch.randn(5, 3, 6, dtype=torch.float64).requires_grad_()
    threshold = torch.empty(6, dtype=torch.float64).uniform_(-0.3, 0.3).requires_grad_()
    found, expected = recurrence(weight, x, threshold), readable_recurrence(weight, x, threshold)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # float64 sums of six products
    g = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (weight, x, threshold), g),
        torch.autograd.grad(expected, (weight, x, threshold), g),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # and of 15 of those


def test_rotations_are_orthogonal() -> None:
    matrix = rotations(8).double()
    torch.testing.assert_close(matrix.mT @ matrix, torch.eye(8).double(), rtol=0, atol=1e-6)  # made in float32


def test_copying_asks_for_what_it_showed() -> None:
    task = Copying(delay=30)
    x, y = task.batch(7, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (50, 7)
    assert torch.equal(x[:COPIED], y[-COPIED:]) and (x[:COPIED] >= 1).all() and (x[:COPIED] <= ALPHABET).all()
    assert not y[:-COPIED].any() and (x[-COPIED - 1] == ALPHABET + 1).all()
    assert task.baseline == pytest.approx(10 * math.log(8) / 50)


def test_digits_are_split() -> None:
    task = Digits()
    assert len(task.y) == 2 * len(task.y_test) and task.x.shape[1] == 64 and task.x.max() == 1.0


@pytest.mark.parametrize("method", ["free", "torch", "p4 rank 2"])
def test_all_start_from_the_same_network(method: str) -> None:
    fit = Learner(Variant("digits", method, 1e-3), SHORT, 3, None)
    torch.manual_seed(3)
    plain = Network(SHORT.hidden, 10)
    torch.testing.assert_close(fit.network.recurrent.detach(), plain.recurrent.detach(), rtol=0, atol=1e-5)


def test_a_resume_is_exact(tmp_path: Path) -> None:
    straight, resumed = (Learner(Variant("copying", "p4 rank 2", 1e-3), SHORT, 0, None) for _ in range(2))
    for _ in range(3):
        straight.advance()
    save_checkpoint(tmp_path / "state.pt", straight.state_dict())
    resumed.load_state_dict(load_checkpoint(tmp_path / "state.pt"))
    for fit in (straight, resumed):
        for _ in range(3):
            fit.advance()
    for one, other in zip(straight.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert recurrent.main(["--short", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    methods = {row["method"] for row in rows}
    assert {"free", "torch", "p4 rank 4", "p4 rank 16"} <= methods  # geotorch is left out, by name, where it is missing
    assert all(row["orthogonality"] < 1e-5 for row in rows if row["method"] != "free")
    assert (out / "recurrent.png").exists()
