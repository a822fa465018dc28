"""From the forces of an OpenMM System to terms. Whatever cannot be said exactly is refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor, nn

from p4torch.errors import ArgumentError
from p4torch.molecules.forces.born import GeneralizedBorn
from p4torch.molecules.forces.custom_born import UnknownFormError, read_custom_born
from p4torch.molecules.forces.harmonic import HarmonicAngles, HarmonicBonds
from p4torch.molecules.forces.nonbonded import COULOMB, Nonbonded
from p4torch.molecules.forces.pairs import Pairs
from p4torch.molecules.forces.torsions import FourierTorsions

_FALLBACK = "OpenMMEnergy can evaluate it"
#: α, β, γ and the dielectric offset in nm of OBC model II, which GBSAOBCForce is.
_OBC2, _OBC_OFFSET = (1.0, 0.8, 4.85), 0.009

Series = dict[tuple[int, ...], list[tuple[int, float, float]]]


def read_terms(system: openmm.System) -> list[nn.Module]:
    """The terms of a system.

    Raises ArgumentError, naming the force, for virtual sites, constraints, periodic systems, cutoffs and forces that
    are not among: HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, RBTorsionForce, NonbondedForce,
    GBSAOBCForce, the CustomGBForce of OpenMM's implicit/obc1, obc2, gbn and gbn2. CMMotionRemover has no energy.
    """
    _check_system(system)
    count, terms, pair_terms, series = system.getNumParticles(), [], [], Series()
    for force in system.getForces():
        _check_not_periodic(force)
        if isinstance(force, openmm.CMMotionRemover):
            continue
        if isinstance(force, (openmm.PeriodicTorsionForce, openmm.RBTorsionForce)):
            for atoms, waves in _torsions(force):
                series.setdefault(min(atoms, atoms[::-1]), []).extend(waves)
        elif type(force) in _BONDED:
            terms.append(_BONDED[type(force)](count, force))
        elif type(force) in _PAIRWISE:
            if force.getNonbondedMethod() != type(force).NoCutoff:
                raise _refusal(force, "only the method NoCutoff is supported")
            pair_terms.append(_PAIRWISE[type(force)](force))
        else:
            raise _refusal(force, "a force type that is not supported")
    if series:
        terms.append(_fourier(count, series))
    if pair_terms:
        terms.append(Pairs(count, pair_terms))
    return [term for term in terms if term is not None]


# --- refusals -------------------------------------------------------------------------------------------------


def _refusal(force: openmm.Force, reason: str) -> ArgumentError:
    return ArgumentError.of("system", "made of supported forces", f"{type(force).__name__}: {reason}; {_FALLBACK}")


def _check_system(system: openmm.System) -> None:
    if not isinstance(system, openmm.System):
        raise ArgumentError.of("system", "an openmm.System", type(system).__name__)
    if system.getNumParticles() < 1:
        raise ArgumentError.of("system", "a system with particles", "none")
    if system.getNumConstraints():
        raise ArgumentError.of(
            "system", "without constraints (constrained bonds have no density)", f"{system.getNumConstraints()} of them"
        )
    sites = [index for index in range(system.getNumParticles()) if system.isVirtualSite(index)]
    if sites:
        raise ArgumentError.of("system", "without virtual sites", f"particles {sites[:5]} are")


def _check_not_periodic(force: openmm.Force) -> None:
    try:
        periodic = force.usesPeriodicBoundaryConditions()
    except openmm.OpenMMException:  # forces that do not know
        return
    if periodic:
        raise _refusal(force, "periodic boundary conditions are not supported")


# --- bonded terms ---------------------------------------------------------------------------------------------


def plain(values: Iterable[object]) -> list[float]:
    """Numbers in nm, kJ/mol, rad, e."""
    return [value.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(value) else value for value in values]  # type: ignore[attr-defined, misc]


def table(rows: Sequence[Sequence[float]]) -> Tensor:
    """Columns of numbers as float64 `(columns, rows)`."""
    return torch.tensor(np.array(rows, dtype=np.float64).T.copy())


def _bonds(count: int, force: openmm.HarmonicBondForce) -> nn.Module | None:
    rows = [plain(force.getBondParameters(index)) for index in range(force.getNumBonds())]
    return _harmonic(HarmonicBonds, count, rows)


def _angles(count: int, force: openmm.HarmonicAngleForce) -> nn.Module | None:
    rows = [plain(force.getAngleParameters(index)) for index in range(force.getNumAngles())]
    return _harmonic(HarmonicAngles, count, rows)


def _harmonic(kind: Callable[..., nn.Module], count: int, rows: Sequence[Sequence[float]]) -> nn.Module | None:
    if not rows:
        return None
    *atoms, origin, stiffness = table(rows)
    return kind(count, torch.stack(atoms).long(), origin, stiffness)


def _torsions(
    force: openmm.PeriodicTorsionForce | openmm.RBTorsionForce,
) -> Iterable[tuple[tuple[int, ...], list[tuple[int, float, float]]]]:
    """The atoms of each torsion, and its waves: n, a_n, b_n of a_n cos nφ + b_n sin nφ.

    k (1 + cos(nφ - φ0)) for PeriodicTorsionForce; Σ c_n cosⁿ(φ - π) for RBTorsionForce.
    """
    for index in range(force.getNumTorsions()):
        i, j, k, l, *values = plain(force.getTorsionParameters(index))  # noqa: E741
        if isinstance(force, openmm.PeriodicTorsionForce):
            n, phase, height = values
            waves = [(0, height, 0.0), (int(n), height * np.cos(phase), height * np.sin(phase))]
        else:
            signed = [value * (-1) ** n for n, value in enumerate(values)]
            waves = [(n, float(a), 0.0) for n, a in enumerate(np.polynomial.chebyshev.poly2cheb(signed))]
        yield (int(i), int(j), int(k), int(l)), waves


def _fourier(count: int, series: Series) -> nn.Module:
    order = max(n for waves in series.values() for n, _, _ in waves)
    coefficients = torch.zeros(2, order + 1, len(series), dtype=torch.float64)
    for column, waves in enumerate(series.values()):
        for n, a, b in waves:
            coefficients[:, n, column] += torch.tensor([a, b], dtype=torch.float64)
    return FourierTorsions(count, torch.tensor(list(series)).T.contiguous(), *coefficients)


# --- pairs ----------------------------------------------------------------------------------------------------


def _nonbonded(force: openmm.NonbondedForce) -> nn.Module:
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise _refusal(force, "parameter offsets are not supported")
    count = force.getNumParticles()
    charge, sigma, epsilon = table([plain(force.getParticleParameters(index)) for index in range(count)])
    charges, sigmas = charge[:, None] * charge, (sigma[:, None] + sigma) / 2
    epsilons = (epsilon[:, None] * epsilon).sqrt()
    for index in range(force.getNumExceptions()):
        i, j, *values = plain(force.getExceptionParameters(index))
        i, j = sorted((int(i), int(j)))
        charges[i, j], sigmas[i, j], epsilons[i, j] = values
    i, j = torch.triu_indices(count, count, offset=1)
    return Nonbonded(sigmas[i, j], epsilons[i, j], charges[i, j])


def _obc(force: openmm.GBSAOBCForce) -> nn.Module:
    rows = [plain(force.getParticleParameters(index)) for index in range(force.getNumParticles())]
    charge, radius, scale = table(rows)
    offset = radius - _OBC_OFFSET
    (surface,) = plain([force.getSurfaceAreaEnergy()])
    return GeneralizedBorn(
        charge=charge,
        radius=radius,
        offset=offset,
        scaled=scale * offset,
        polynomial=torch.tensor(_OBC2, dtype=torch.float64)[:, None].expand(-1, len(rows)),
        coupling=COULOMB * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()),
        surface=4 * np.pi * surface,
        engulfed=True,
    )


def _custom(force: openmm.CustomGBForce) -> nn.Module:
    try:
        return read_custom_born(force)
    except UnknownFormError as error:
        raise _refusal(force, str(error)) from None


_BONDED: dict[type, Callable[..., nn.Module | None]] = {
    openmm.HarmonicBondForce: _bonds,
    openmm.HarmonicAngleForce: _angles,
}
_PAIRWISE: dict[type, Callable[..., nn.Module]] = {
    openmm.NonbondedForce: _nonbonded,
    openmm.GBSAOBCForce: _obc,
    openmm.CustomGBForce: _custom,
}
