"""What energies a perfect model would have if it blurred every atom a little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.energies import weighted_quantile
from p4torch.molecules.analysis.inputs import normalize_weights, refuse, series, thermal_energy


@dataclass(frozen=True)
class NoiseBaseline:
    """Energies of noisy frames, in kJ/mol; divide by `kT`, or ask `in_kT`, for units of kT.

    Attributes:
        data_mean: mean energy of the frames as they are, and `noisy_mean` with the noise.
        shift: noisy_mean − data_mean.
        levels: `(k,)`, of the quantiles; `noisy_quantiles` and `data_quantiles` `(k,)`.
        kT: in kJ/mol.
    """

    sigma_nm: float
    temperature_K: float
    kT: float
    data_mean: float
    noisy_mean: float
    shift: float
    levels: Tensor
    data_quantiles: Tensor
    noisy_quantiles: Tensor

    def in_kT(self, energy: float) -> float:
        """An energy in kJ/mol in units of kT."""
        return energy / self.kT


def noise_baseline(
    energy: Callable[[Tensor], Tensor],
    frames: Tensor,
    sigma_nm: float = 0.004,
    temperature_K: float = 300.0,
    generator: torch.Generator | None = None,
    *,
    weights: Tensor | None = None,
    levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
    batch: int = 4096,
) -> NoiseBaseline:
    """Energies after independent Gaussian noise of `sigma_nm` on every coordinate of the frames.

    A harmonic mode of curvature k gains k σ² / 2, so stiff bonds decide: the yardstick for the energies of a generator,
    and for what a small inaccuracy of its coordinates costs.

    Args:
        energy: from `(batch, atoms, 3)` in nm to `(batch,)` in kJ/mol.
        frames: `(frames, atoms, 3)` in nm, at `temperature_K`; weighted by `weights`.
        generator: of the noise, on the CPU; seed 0 if None.

    Raises:
        ArgumentError: frames that are empty or not finite, energies that are not finite or of another shape, a
            sigma that is negative.
    """
    if frames.dim() != 3 or frames.shape[-1] != 3 or frames.numel() == 0 or not frames.is_floating_point():
        raise ArgumentError.of("frames", "real, of shape (frames, atoms, 3), not empty", tuple(frames.shape))
    refuse(~frames.isfinite().flatten(1).all(-1), "frames", "finite", "not finite")
    if not 0 <= sigma_nm < float("inf"):
        raise ArgumentError.of("sigma_nm", "a length in nm, not negative", sigma_nm)
    kT, weight = thermal_energy(temperature_K), normalize_weights(weights, frames)
    at = torch.tensor(levels, dtype=torch.float64)
    check_integer("batch", batch, 1)
    generator = generator or torch.Generator().manual_seed(0)
    before, after = [], []
    for chunk in frames.detach().split(batch):
        noise = torch.randn(chunk.shape, generator=generator, dtype=torch.float64).to(chunk)
        before.append(_energies(energy, chunk))
        after.append(_energies(energy, chunk + sigma_nm * noise))
    data, noisy = series(torch.cat(before), "energy of frames"), series(torch.cat(after), "energy of noisy frames")
    data_mean, noisy_mean = float(weight @ data), float(weight @ noisy)
    return NoiseBaseline(
        sigma_nm=sigma_nm,
        temperature_K=temperature_K,
        kT=kT,
        data_mean=data_mean,
        noisy_mean=noisy_mean,
        shift=noisy_mean - data_mean,
        levels=at,
        data_quantiles=weighted_quantile(data, at, weight),
        noisy_quantiles=weighted_quantile(noisy, at, weight),
    )


def _energies(energy: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    with torch.no_grad():
        energies = energy(frames)
    if energies.shape != frames.shape[:1]:
        raise ArgumentError.of("energy", f"a function that returns {tuple(frames.shape[:1])}", tuple(energies.shape))
    return energies.to(torch.float64)
