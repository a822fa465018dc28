"""Molecules, frames and Jacobians for the tests of coordinates."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import openmm
import torch
from openmm import app, unit
from torch import Tensor

import p4torch.molecules

OWN = Path(p4torch.molecules.__file__).parent / "data"
HERE = Path(__file__).parent / "data"

#: All test molecules, by the names of their files.
MOLECULES = sorted(path.stem for path in (*OWN.glob("*.pdb"), *HERE.glob("*.pdb")))

#: kJ/(mol K)
GAS_CONSTANT = 0.00831446261815324


def pdb(name: str) -> app.PDBFile:
    path = OWN / f"{name}.pdb"
    return app.PDBFile(str(path if path.exists() else HERE / f"{name}.pdb"))


def positions(name: str) -> Tensor:
    """`(atoms, 3)` in nm, as in the file."""
    return torch.tensor(pdb(name).getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=torch.float64)


def simulation(system: openmm.System, temperature: float, seed: int = 1, step: float = 0.001) -> openmm.Context:
    integrator = openmm.LangevinMiddleIntegrator(temperature, 2.0, step)
    integrator.setRandomNumberSeed(seed)
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))


def run(context: openmm.Context, frames: int, steps: int) -> Tensor:
    """`(frames, atoms, 3)` in nm, one every so many steps."""
    result = []
    for _ in range(frames):
        context.getIntegrator().step(steps)
        state = context.getState(getPositions=True)
        result.append(torch.from_numpy(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer).copy()))
    return torch.stack(result)


@cache
def md_frames(name: str, frames: int = 200, steps: int = 10, temperature: float = 300.0) -> Tensor:
    """Langevin dynamics of a test molecule, after 0.5 ps without recording."""
    molecule = pdb(name)
    system = app.ForceField("amber99sbildn.xml", "amber96_obc.xml").createSystem(
        molecule.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False
    )
    context = simulation(system, temperature)
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(temperature, 1)
    run(context, 1, 500)
    return run(context, frames, steps)


def pairwise(x: Tensor) -> Tensor:
    """All distances between atoms, `(..., pairs)`."""
    first, second = torch.triu_indices(x.shape[-2], x.shape[-2], 1)
    return (x[..., first, :] - x[..., second, :]).norm(dim=-1)


def handedness(x: Tensor) -> Tensor:
    """Signed volumes of all quadruples of consecutive atoms, `(..., atoms - 3)`: mirror images differ in sign."""
    edges = x[..., 1:, :] - x[..., :-1, :]
    return torch.linalg.det(torch.stack([edges[..., k : edges.shape[-2] - 2 + k, :] for k in range(3)], -2))


def moved(x: Tensor) -> Tensor:
    """Every frame turned and shifted at random."""
    turns = torch.linalg.qr(torch.randn(*x.shape[:-2], 3, 3, dtype=x.dtype))[0]
    turns = turns * torch.linalg.det(turns).sign()[..., None, None]
    return x @ turns + torch.randn(*x.shape[:-2], 1, 3, dtype=x.dtype)


def chart_logabsdet(inverse: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> Tensor:
    """log|det| of (t, ω, z) -> x = exp(ω) x(z) + t at t = ω = 0, by autograd: all 3·atoms coordinates of one frame."""

    def chart(values: Tensor) -> Tensor:
        x = inverse(values[6:])[0]
        turn = torch.linalg.cross(values[3:6].expand_as(x), x)
        return (x + turn + values[:3]).flatten()

    values = torch.cat([torch.zeros(6, dtype=z.dtype), z])
    jacobian: Any = torch.func.jacrev(chart)(values)
    return torch.linalg.slogdet(jacobian)[1]
