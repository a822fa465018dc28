"""What a molecular system must be: open space, one molecule, every atom free to move, physics that turns with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import networkx
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from p4torch.errors import ArgumentError

#: Two atoms that are closer than this (nm) lie on top of each other: the shortest bond, H-H, has 0.074.
CLASH = 0.04
#: How much the energy (kJ/mol, and relative) may change when the molecule is turned and moved: rounding of large terms.
INVARIANCE = (1e-3, 1e-6)

#: Endings of the names of forces that are no part of a molecule's own physics, and why.
_UNFIT_FORCES = {
    "Thermostat": "it acts on velocities, and `temperature` already says what ensemble is meant",
    "Barostat": "a molecule in open space has no volume to couple to",
    "CustomExternalForce": "its energy changes when the molecule is moved as a whole",
    "DrudeForce": "Drude particles are not atoms, and their positions have no distribution of their own",
}


def check_openmm_system(system: openmm.System) -> None:
    """Refuse a System whose coordinates have no density in open space, by the name of what stands in the way.

    Raises:
        ArgumentError: periodic boundaries, a cutoff, constraints, virtual sites, massless particles, a force that is
            not the molecule's own physics; or no System at all.
    """
    if not isinstance(system, openmm.System):
        raise ArgumentError.of("openmm_system", "an openmm.System", type(system).__name__)
    if system.getNumParticles() == 0:
        raise ArgumentError.of("openmm_system", "a System with particles", "none")
    for force in system.getForces():
        _check_force(force)
    if system.usesPeriodicBoundaryConditions():
        periodic = [force.getName() for force in system.getForces() if force.usesPeriodicBoundaryConditions()]
        got = f"them in {', '.join(periodic) or 'its forces'}"
        raise ArgumentError.of("openmm_system", "without periodic boundary conditions", got)
    constraints = system.getNumConstraints()
    if constraints:
        i, j, _ = system.getConstraintParameters(0)
        expected = "without constraints (constrained lengths have no density); use constraints=None, rigidWater=False"
        raise ArgumentError.of("openmm_system", expected, f"{constraints}, the first between atoms {i} and {j}")
    for index in range(system.getNumParticles()):
        if system.isVirtualSite(index):
            raise ArgumentError.of("openmm_system", "without virtual sites", f"one at particle {index}")
        if system.getParticleMass(index)._value == 0:
            raise ArgumentError.of("openmm_system", "without massless particles", f"one at particle {index}")


def _check_force(force: openmm.Force) -> None:
    kind = type(force).__name__
    for ending, reason in _UNFIT_FORCES.items():
        if kind.endswith(ending):
            raise ArgumentError.of("openmm_system", f"without {kind} ({reason})", "one that has it")
    method = force.getNonbondedMethod() if hasattr(force, "getNonbondedMethod") else 0
    if method != 0:  # NoCutoff, in every class of forces that has methods
        name = next((key for key in ("CutoffNonPeriodic", "CutoffPeriodic", "Ewald", "PME", "LJPME")
                     if getattr(type(force), key, None) == method), str(method))  # fmt: skip
        expected = "without a cutoff or periodic images; use nonbondedMethod=NoCutoff"
        raise ArgumentError.of("openmm_system", expected, f"{force.getName()} with {name}")


def check_positions(positions: Tensor, topology: app.Topology) -> Tensor:
    """Positions as float64 `(atoms, 3)` in nm, finite and apart, or an ArgumentError that names the atoms."""
    if not isinstance(positions, Tensor) or not positions.is_floating_point():
        raise ArgumentError.of("positions", "a tensor of a floating-point dtype, in nm", type(positions).__name__)
    atoms = list(topology.atoms())
    if tuple(positions.shape) != (len(atoms), 3):
        raise ArgumentError.of("positions", f"of shape ({len(atoms)}, 3), the topology's atoms", tuple(positions.shape))
    positions = positions.detach().to("cpu", torch.float64)
    broken = (~positions.isfinite().all(-1)).nonzero().flatten().tolist()
    if broken:
        raise ArgumentError.of(
            "positions", "finite", f"{len(broken)} atoms that are not, the first {describe(atoms[broken[0]])}"
        )
    if len(atoms) > 1:
        distance = torch.pdist(positions)
        closest = int(distance.argmin())
        if distance[closest] < CLASH:
            i, j = torch.triu_indices(len(atoms), len(atoms), 1)[:, closest].tolist()
            got = f"{describe(atoms[i])} and {describe(atoms[j])} at {float(distance[closest]):.4f} nm"
            raise ArgumentError.of("positions", f"of atoms at least {CLASH} nm apart", got)
    return positions


def check_shape(x: Tensor, atoms: int, argument: str = "x") -> None:
    """Refuse what is not positions `(..., atoms, 3)` of a floating-point dtype."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError.of(argument, "a tensor of a floating-point dtype", got)
    if x.dim() < 2 or tuple(x.shape[-2:]) != (atoms, 3):
        raise ArgumentError.of(argument, f"of shape (..., {atoms}, 3)", tuple(x.shape))


def check_finite(x: Tensor) -> None:
    """Refuse positions `(..., atoms, 3)` that are not all finite; the error counts the frames, and names the first."""
    broken = (~x.detach().isfinite().flatten(-2).all(-1)).flatten().nonzero().flatten()
    if len(broken):
        got = f"{len(broken)} frames with NaN or infinite positions, the first frame {int(broken[0])}"
        raise ArgumentError.of("x", "finite", got)


def check_same_atoms(system: openmm.System, topology: app.Topology) -> None:
    """Refuse a topology that does not describe the System: another number of atoms, or bonds that it lacks."""
    if not isinstance(topology, app.Topology):
        raise ArgumentError.of("topology", "an openmm.app.Topology", type(topology).__name__)
    if topology.getNumAtoms() != system.getNumParticles():
        expected = f"of the System's {system.getNumParticles()} particles"
        raise ArgumentError.of("topology", expected, f"{topology.getNumAtoms()} atoms")
    known = set(harmonic_bonds(system))
    for bond in topology.bonds() if known else ():
        if _pair(bond[0].index, bond[1].index) not in known:
            got = f"a bond of {describe(bond[0])} and {describe(bond[1])} that the System does not have"
            raise ArgumentError.of("topology", "in the System's order of atoms", got)


def check_connected(topology: app.Topology, bonds: Iterable[tuple[int, int]], positions: Tensor) -> None:
    """Refuse several molecules: what holds them together is no coordinate, so they drift apart without end."""
    atoms = list(topology.atoms())
    graph = networkx.Graph(list(bonds))
    graph.add_nodes_from(range(len(atoms)))
    parts = sorted(map(sorted, networkx.connected_components(graph)))
    if len(parts) == 1:
        return
    first, second = parts[:2]
    distance = torch.cdist(positions[first], positions[second]).min()
    named = "; ".join(_residues([atoms[index] for index in part]) for part in parts[:4])
    got = (
        f"{len(parts)} that no bond connects: {named}{'; ...' if len(parts) > 4 else ''} "
        f"(the first two are {float(distance):.3f} nm apart)"
    )
    raise ArgumentError.of("topology", "of one molecule", got)


def check_invariant(system: openmm.System, positions: Tensor) -> None:
    """Refuse physics that is not finite at the positions, or that changes when the molecule is turned and moved."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    turn = torch.linalg.matrix_exp(positions.new_tensor([[0.0, -0.9, 0.4], [0.9, 0.0, -0.7], [-0.4, 0.7, 0.0]]))
    energies = []
    for x in (positions, positions @ turn.T + positions.new_tensor([0.7, -1.1, 0.9])):
        context.setPositions(x.contiguous().numpy())
        energy = context.getState(energy=True).getPotentialEnergy()
        energies.append(energy.value_in_unit(unit.kilojoule_per_mole))
    before, after = energies
    if not math.isfinite(before):
        raise ArgumentError.of("positions", "of finite energy", f"{before} kJ/mol")
    absolute, relative = INVARIANCE
    if not abs(after - before) <= absolute + relative * abs(before):
        expected = "of an energy that stays when the molecule is turned and moved"
        raise ArgumentError.of("openmm_system", expected, f"{before:.6g} kJ/mol before and {after:.6g} after")


# --- bonds ------------------------------------------------------------------------------------------------------------


def harmonic_bonds(system: openmm.System) -> Iterator[tuple[int, int]]:
    """The pairs (i, j), i < j, that the System's harmonic bonds connect."""
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                i, j, _, _ = force.getBondParameters(index)
                yield _pair(i, j)


def bond_pairs(system: openmm.System, topology: app.Topology) -> list[tuple[int, int]]:
    """The bonds (i, j), i < j, of topology and System together, sorted; PDB files need not tell all of them."""
    named = {_pair(bond[0].index, bond[1].index) for bond in topology.bonds()}
    return sorted(named | set(harmonic_bonds(system)))


# --- words ------------------------------------------------------------------------------------------------------------


def describe(atom: app.topology.Atom) -> str:
    """An atom for people: "CA of ALA 2 (atom 8)"; atoms count from 0, residues as in the file."""
    return f"{atom.name} of {describe_residue(atom.residue)} (atom {atom.index})"


def describe_residue(residue: app.topology.Residue) -> str:
    """A residue for people: "ALA 2", with its chain if the file names one."""
    chain = residue.chain.id.strip()
    return f"{residue.name} {residue.id}" + (f" of chain {chain}" if chain else "")


def _residues(atoms: list[app.topology.Atom]) -> str:
    names = list(dict.fromkeys(describe_residue(atom.residue) for atom in atoms))
    return ", ".join(names if len(names) <= 3 else [names[0], "...", names[-1]])


def _pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)
