"""The lattice example: its field theory against what is known, and a short run from end to end."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from examples.lattice import SHORT, Checkerboard, Compression, Learner, Setting, action, effective_share, symmetries
from examples.lattice_gauge import (
    Gauge,
    Transformation,
    divergence,
    drawn,
    exact_plaquette,
    functional,
    gauge_row,
    plaquettes,
    relaxed,
    staples,
    sweep,
    transformed,
)
from torch import Tensor

import p4torch as p4
from examples import lattice
from p4torch.representations import same_elements
from p4torch.runs.folder import read_json
from p4torch.testing import check_bijection, check_equivariance

#: Products of a few matrices in float64.
EXACT = 1e-12


def links(size: int = 4, sweeps: int = 3) -> Tensor:
    fields = torch.eye(2, dtype=torch.complex128).repeat(2, size, size, 1, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(sweeps):
        sweep(fields, 2.0, generator)
    return fields


# --- φ⁴ -------------------------------------------------------------------------------------------------------------


def test_the_action_by_its_sum_over_sites() -> None:
    setting = Setting(size=3)
    phi = torch.randn(9, dtype=torch.float64)
    field, total = phi.reshape(3, 3), torch.zeros((), dtype=torch.float64)
    for x, y in itertools.product(range(3), repeat=2):
        here = field[x, y]
        around = [field[(x + 1) % 3, y], field[x - 1, y], field[x, (y + 1) % 3], field[x, y - 1]]
        total += here * (4 * here - sum(around)) + setting.mass * here**2 + setting.coupling * here**4
    torch.testing.assert_close(action(phi, setting), total, rtol=0, atol=EXACT)


def test_the_action_and_the_mixing_layers_have_the_symmetries_of_the_lattice() -> None:
    setting = Setting(size=4)
    phi = torch.randn(5, 16, dtype=torch.float64)
    (elements,) = same_elements([symmetries(4)], 10, torch.Generator().manual_seed(0))
    for element in elements:
        torch.testing.assert_close(action(phi @ element.mT, setting), action(phi, setting), rtol=0, atol=100 * EXACT)
    assert p4.LinearSubspace(torch.eye(64), representation=symmetries(8)).intertwiners.dimension == 15
    layer = p4.flows.InvertibleLinear(16, False, property=p4.LinearSubspace, representation=symmetries(4))
    assert check_equivariance(lambda x: layer(x)[0], symmetries(4), symmetries(4)) < EXACT**0.5


@pytest.mark.parametrize("kind", ["coupling", "compression"])
def test_the_bijections_of_the_example(kind: str) -> None:
    make = Compression if kind == "compression" else lambda: Checkerboard(4, 3, 1)
    check_bijection(make, features=16, compile=False)


def test_the_effective_share() -> None:
    assert effective_share(torch.zeros(10)) == pytest.approx(1)
    assert effective_share(torch.tensor([0.0, *[-100.0] * 9])) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", lattice.KINDS)
def test_a_flow_resumes_exactly(kind: str) -> None:
    straight = Learner(kind, SHORT, 0)
    for _ in range(4):
        straight.advance()
    resumed = Learner(kind, SHORT, 0)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for learner in (straight, resumed):
        learner.advance()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


# --- SU(2) ----------------------------------------------------------------------------------------------------------


def test_staples_close_their_links() -> None:
    """Σ tr U A / 2 over the links of a direction counts every plaquette twice."""
    fields = links()
    for direction in range(2):
        closed = (fields[direction] @ staples(fields, direction)).diagonal(dim1=-2, dim2=-1).sum(-1).real / 2
        torch.testing.assert_close(closed.sum(), 2 * plaquettes(fields).sum(), rtol=0, atol=100 * EXACT)


def test_drawn_elements_have_the_mean_of_their_density() -> None:
    """<tr u / 2> = I₂(s) / I₁(s) for the density exp(s tr u / 2), within 4 standard errors."""
    traces = drawn(torch.full((20000,), 3.0, dtype=torch.float64), torch.Generator().manual_seed(0))
    half = traces.diagonal(dim1=-2, dim2=-1).sum(-1).real / 2
    assert abs(float(half.mean()) - exact_plaquette(3.0)) < 4 * float(half.std()) / len(half) ** 0.5


def test_gauge_transformations_move_no_plaquette() -> None:
    fields = links()
    model = Transformation(fields).double()
    with torch.no_grad():
        for value in next(p4.sites(model)).trainable().values():
            value.normal_()
        moved = model(fields)
    assert float((moved - fields).abs().max()) > 0.1
    torch.testing.assert_close(plaquettes(moved), plaquettes(fields), rtol=0, atol=EXACT)
    assert float(functional(moved)) < 1


def test_relaxation_and_training_find_the_gauge_of_a_pure_one() -> None:
    """A transformed vacuum goes back to F = 1, without divergence."""
    vacuum = torch.eye(2, dtype=torch.complex128).repeat(2, 4, 4, 1, 1)
    strength = torch.full((4, 4), 4.0, dtype=torch.float64)
    hidden = transformed(vacuum, drawn(strength, torch.Generator().manual_seed(0)))
    found = relaxed(hidden, 200, 1.5)
    assert float(functional(found)) > 1 - EXACT and divergence(found) < EXACT


def test_a_short_row() -> None:
    row = gauge_row(Gauge.short(), 0)
    assert row["merged"] == 2 * 16 and row["defect"] < EXACT and row["plaquettes_moved"] < EXACT


def test_a_short_run_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert lattice.main(["--short", "--seeds", "0", "--out", str(out)]) == 0
    metrics = read_json(out / "metrics.json")
    assert {row["kind"] for row in metrics["rows"]} == set(lattice.KINDS)
    assert (out / "lattice.png").exists() and "Landau's gauge" in (out / "table.md").read_text()
