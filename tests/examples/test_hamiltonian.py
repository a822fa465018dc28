"""The Hamiltonian example: its physics, a short run from end to end, and its networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples.hamiltonian import Setting, energy, states, symplectic, true_map
from tests.flows.bijections import randomized

from examples import hamiltonian
from p4torch.runs.folder import read_json

#: Relative energy error of the leapfrog integrator over one unit of time.
INTEGRATOR = 1e-6


@pytest.fixture
def some() -> torch.Tensor:
    return states(40, (0.02, 0.12), torch.Generator().manual_seed(0))


def test_states_have_the_energies_asked_for(some: torch.Tensor) -> None:
    assert (energy(some) >= 0.02 - 1e-9).all() and (energy(some) <= 0.12 + 1e-9).all()


def test_the_true_map_keeps_the_energy_and_can_be_run_back(some: torch.Tensor) -> None:
    after = true_map(some)
    assert ((energy(after) / energy(some) - 1).abs() <= INTEGRATOR).all()
    back = true_map(after * torch.tensor([1.0, 1.0, -1.0, -1.0]))  # momenta turned around
    torch.testing.assert_close(back * torch.tensor([1.0, 1.0, -1.0, -1.0]), some, rtol=0, atol=1e-9)


def test_the_network_is_symplectic_whatever_it_learns(some: torch.Tensor) -> None:
    model = randomized(symplectic(Setting(blocks=2, width=4)), 0.1)
    jacobian = torch.func.vmap(torch.func.jacrev(model))(some)
    form = torch.zeros(4, 4).double()
    form[:2, 2:], form[2:, :2] = torch.eye(2), -torch.eye(2)
    torch.testing.assert_close(jacobian.mT @ form @ jacobian, form.expand(40, 4, 4), rtol=0, atol=1e-12)


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert hamiltonian.main(["--short", "--seeds", "0", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert [row["kind"] for row in rows] == list(hamiltonian.KINDS)
    assert [row["steps"] for row in rows] == [20, 20, 160]
    assert rows[0]["symplectic_defect"] < 1e-12 < rows[1]["symplectic_defect"]
    assert (out / "hamiltonian.png").exists() and "energy drift" in (out / "table.md").read_text()
    assert hamiltonian.main(["--short", "--seeds", "0", "--out", str(out), "--resume"]) == 0
    again = read_json(out / "metrics.json")["rows"]
    assert [row["error"] for row in again] == [row["error"] for row in rows]
