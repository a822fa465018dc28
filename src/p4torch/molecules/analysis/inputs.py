"""What the functions of the analysis accept: checks that name the argument and the first value that is wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p4torch._options import check_tensor
from p4torch.errors import ArgumentError
from p4torch.molecules.units import GAS_CONSTANT


def thermal_energy(temperature_K: float, name: str = "temperature_K") -> float:
    """kT = R T in kJ/mol.

    Raises:
        ArgumentError: the temperature is not a positive number.
    """
    if not (math.isfinite(temperature_K) and temperature_K > 0):
        raise ArgumentError.of(name, "a positive number of kelvins", temperature_K)
    return GAS_CONSTANT * temperature_K


def share_of(value: float, name: str, whole: bool = False) -> float:
    """A number between 0 and 1, without 0, and without 1 unless `whole`; or an ArgumentError."""
    if not (0 < value < 1 or (whole and value == 1)):
        raise ArgumentError.of(name, f"in (0, 1{']' if whole else ')'}", value)
    return float(value)


def series(values: Tensor, name: str, least: int = 1) -> Tensor:
    """`(frames,)`, finite, as float64.

    Raises:
        ArgumentError: not one-dimensional, too short, or with values that are not finite (how many, and the first).
    """
    values = _row(values, name, least)
    refuse(~values.isfinite(), name, "finite", "not finite")
    return values


def log_series(values: Tensor, name: str, zero: float) -> Tensor:
    """`(frames,)` as float64, where one infinity, `zero`, has a meaning; the other one and NaN have none."""
    values = _row(values, name, 1)
    refuse(~(values.isfinite() | (values == zero)), name, f"finite or {zero}", "neither")
    return values


def normalize_weights(weights: Tensor | None, frames: Tensor, name: str = "weights") -> Tensor:
    """`(frames,)`, non-negative, of sum 1; equal for all frames where no weights are given.

    Raises:
        ArgumentError: another length, values that are negative or not finite, or all zero.
    """
    if weights is None:
        return torch.full((len(frames),), 1 / len(frames), dtype=torch.float64, device=frames.device)
    weights = series(weights, name)
    same_length(weights, frames, name)
    refuse(weights < 0, name, "non-negative", "negative")
    top = weights.max()
    if top == 0:
        raise ArgumentError.of(name, "positive somewhere", "zero everywhere")
    weights = weights / top
    return weights / weights.sum()


def trajectory_index(trajectory_ids: Tensor | None, frames: Tensor, name: str = "trajectory_ids") -> Tensor:
    """`(frames,)`: the trajectory of each frame as 0, 1, ...; one trajectory where none are given.

    Raises:
        ArgumentError: another length, or not integers.
    """
    if trajectory_ids is None:
        return torch.zeros(len(frames), dtype=torch.long, device=frames.device)
    if trajectory_ids.dim() != 1 or trajectory_ids.is_floating_point() or trajectory_ids.is_complex():
        got = f"{trajectory_ids.dtype} of {tuple(trajectory_ids.shape)}"
        raise ArgumentError.of(name, "integers of shape (frames,)", got)
    same_length(trajectory_ids, frames, name)
    return torch.unique(trajectory_ids, return_inverse=True)[1]


def same_length(values: Tensor, frames: Tensor, name: str) -> None:
    """Refuse a series that is not as long as the others."""
    if len(values) != len(frames):
        raise ArgumentError.of(name, f"of length {len(frames)}, as all series of one call", len(values))


def refuse(bad: Tensor, name: str, expected: str, got: str) -> None:
    """Refuse values by a mask `(n,)`: how many are bad, and which is the first."""
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        raise ArgumentError.of(name, expected, f"{int(bad.sum())} of {len(bad)} that are {got}, the first at {first}")


def _row(values: Tensor, name: str, least: int) -> Tensor:
    check_tensor(name, values)
    if values.dim() != 1 or len(values) < least or values.is_complex():
        raise ArgumentError.of(name, f"real, of shape (n,) with n >= {least}", tuple(values.shape))
    return values.detach().to(torch.float64)
