"""Free energies from several temperatures at once, as parallel tempering gives them."""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.bootstrap import Estimate
from p4torch.molecules.analysis.inputs import refuse, same_length, series, thermal_energy
from p4torch.molecules.analysis.optional import optional


def tempering_free_energy_difference(
    energies: Tensor,
    temperatures_K: Tensor,
    state_of_frame: Tensor,
    in_region: Tensor,
    temperature_K: float,
    inefficiency: float = 1.0,
) -> Estimate:
    """ΔF = −ln(P / (1 − P)) in kT, with P the probability of a region at a temperature, by MBAR.

    MBAR (Shirts and Chodera, J. Chem. Phys. 129 (2008) 124105) weighs the frames of all temperatures by their reduced
    potentials u_kn = U_n / RT_k. Its error σ_P is of independent frames: thin correlated ones out, or say by their
    statistical inefficiency g how far they are from it; the error is √g σ_P / (P (1 − P)).

    Args:
        energies: U_n `(frames,)` in kJ/mol.
        temperatures_K: of the states, `(states,)`.
        state_of_frame: the state that each frame was sampled in, `(frames,)` integers.
        in_region: which frames lie in the region, `(frames,)` booleans.
        temperature_K: where ΔF is wanted; it need not be one of the states'.

    Raises:
        ArgumentError: other shapes or types, values that are not finite, a region with no frames or all.
        P4Error: pymbar is not installed.
    """
    energies, temperatures = series(energies, "energies", least=2), series(temperatures_K, "temperatures_K")
    refuse(temperatures <= 0, "temperatures_K", "positive", "not")
    state, inside = _states(state_of_frame, energies, len(temperatures)), _mask(in_region, energies)
    if not (math.isfinite(inefficiency) and inefficiency >= 1):
        raise ArgumentError.of("inefficiency", "a number >= 1", inefficiency)
    pymbar = optional("pymbar", "molecules")
    thermal = [thermal_energy(float(value), "temperatures_K") for value in temperatures]
    reduced = (energies - energies.min()).cpu() / torch.tensor(thermal, dtype=torch.float64)[:, None]
    target = (energies - energies.min()).cpu() / thermal_energy(temperature_K)
    counts = torch.bincount(state, minlength=len(temperatures))
    mbar = pymbar.MBAR(reduced.numpy(), counts.cpu().numpy())
    with numpy.errstate(divide="ignore"):  # the logarithm of an indicator that is 0
        result = mbar.compute_expectations(inside.cpu().to(torch.float64).numpy(), u_kn=target.numpy())
    share, error = float(result["mu"][0]), float(result["sigma"][0])
    return Estimate(math.log((1 - share) / share), math.sqrt(inefficiency) * error / (share * (1 - share)))


def _states(state_of_frame: Tensor, energies: Tensor, states: int) -> Tensor:
    if state_of_frame.dim() != 1 or state_of_frame.is_floating_point():
        raise ArgumentError.of("state_of_frame", "integers of shape (frames,)", tuple(state_of_frame.shape))
    same_length(state_of_frame, energies, "state_of_frame")
    refuse((state_of_frame < 0) | (state_of_frame >= states), "state_of_frame", f"in 0 ... {states - 1}", "not")
    return state_of_frame.long()


def _mask(in_region: Tensor, energies: Tensor) -> Tensor:
    if in_region.dim() != 1 or in_region.dtype != torch.bool:
        raise ArgumentError.of("in_region", "booleans of shape (frames,)", in_region.dtype)
    same_length(in_region, energies, "in_region")
    if bool(in_region.all()) or not bool(in_region.any()):
        raise ArgumentError.of("in_region", "true for some frames and false for others", f"all {bool(in_region[0])}")
    return in_region
