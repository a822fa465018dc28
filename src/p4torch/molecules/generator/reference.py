"""The data that models of a molecule learn from, and are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.free_energy import POSITIVE_PHI, FreeEnergyDifference, free_energy_difference
from p4torch.molecules.analysis.histograms import Histogram, ramachandran_histogram
from p4torch.molecules.analysis.torsions import bin_index, in_arc, torsion_angles
from p4torch.molecules.simulation.data import ReferenceData
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.torsion_names import Torsion, default_torsions, parse_torsions, torsion_label
from p4torch.molecules.zmatrix import ZMatrix

#: Bins of each torsion of a Ramachandran histogram.
BINS = 64
#: A mode is missing if so large a share of the held-out weight lies in bins of a torsion without training frames.
MODE_BINS, MISSING = 36, 0.002


@dataclass(frozen=True)
class Reference:
    """The molecule's data: what models are trained on, and held-out frames; both of the same distribution."""

    system: MolecularSystem
    train: ReferenceData
    held_out: ReferenceData

    @cached_property
    def torsion(self) -> Torsion:
        """Whose free-energy difference is told."""
        return principal_torsion(self.system)

    @cached_property
    def plane(self) -> tuple[Torsion, Torsion]:
        """Two torsions for Ramachandran plots."""
        return plane(self.system)

    @cached_property
    def all(self) -> ReferenceData:
        """Both parts together."""
        return ReferenceData.cat([self.train, self.held_out])

    @cached_property
    def level(self) -> tuple[float, float]:
        """(mean, largest) u of the data, kT."""
        parts = (self.train, self.held_out)
        total = sum(float(part.energies @ part.weights) for part in parts)
        mean = total / sum(float(part.weights.sum()) for part in parts)
        largest = max(float(part.energies.max()) for part in parts)
        return mean / self.system.kT, largest / self.system.kT

    @cached_property
    def ramachandran(self) -> Histogram:
        """Of all data."""
        return self.histogram(self.all.frames, self.all.weights)

    @cached_property
    def difference(self) -> FreeEnergyDifference | None:
        """ΔF of all data; None if a region was not visited."""
        return self.free_energy(self.all.frames, self.all.weights, self.all.trajectory_ids)

    def check_temperature(self) -> None:
        """Refuse data of another temperature than the system's. Raises ArgumentError."""
        for part in (self.train, self.held_out):
            if part.temperature != self.system.temperature:
                raise ArgumentError.of("data", f"of {self.system.temperature:g} K", f"{part.temperature:g} K")

    def check(self) -> None:
        """Refuse frames for training that miss a mode: a model cannot learn what it never sees.

        Raises:
            ArgumentError: naming the torsion, and the share of held-out frames in a range of it that has none.
        """
        torsions = torch.tensor([self.torsion, *self.plane])
        seen, unseen = (torsion_angles(part.frames, torsions) for part in (self.train, self.held_out))
        weights = self.held_out.weights / self.held_out.weights.sum()
        for column, torsion in enumerate(torsions.tolist()):
            trained = torch.bincount(bin_index(seen[:, column], MODE_BINS), minlength=MODE_BINS)
            held_out = torch.bincount(bin_index(unseen[:, column], MODE_BINS), weights, minlength=MODE_BINS)
            missing = float(held_out[trained == 0].sum())
            if missing > MISSING:
                where = torsion_label(self.system.topology, tuple(torsion))
                raise ArgumentError.of(
                    "frames",
                    "for training that cover all modes of the held-out ones",
                    f"{100 * missing:.2g} % of those where torsion {where} has no frame for training: simulate longer, "
                    "or bias that torsion",
                )

    def histogram(self, frames: Tensor, weights: Tensor | None = None) -> Histogram:
        """Over the plane of the two torsions."""
        first, second = torsion_angles(frames, torch.tensor(self.plane)).unbind(-1)
        return ramachandran_histogram(first, second, BINS, weights)

    def free_energy(
        self, frames: Tensor, weights: Tensor | None = None, trajectory_ids: Tensor | None = None
    ) -> FreeEnergyDifference | None:
        """ΔF of frames of the molecule: `principal_difference`."""
        return principal_difference(self.system, frames, weights, trajectory_ids)


def principal_torsion(system: MolecularSystem) -> Torsion:
    """φ of a dipeptide, or about the first rotatable bond; about any bond, if none is rotatable."""
    return _torsions(system)[0]


def principal_difference(
    system: MolecularSystem, frames: Tensor, weights: Tensor | None = None, trajectory_ids: Tensor | None = None
) -> FreeEnergyDifference | None:
    """ΔF in kT of 0 < θ < 2.4 of the principal torsion against the rest; None where one of them holds no weight."""
    theta = torsion_angles(frames, torch.tensor([principal_torsion(system)]))[:, 0]
    counted = torch.ones_like(theta) if weights is None else weights
    inside = in_arc(theta, POSITIVE_PHI)
    if not bool((counted[inside] > 0).any() and (counted[~inside] > 0).any()):
        return None
    return free_energy_difference(theta, weights=weights, trajectory_ids=trajectory_ids)


def plane(system: MolecularSystem) -> tuple[Torsion, Torsion]:
    """φ and ψ, or the torsions about the first two rotatable bonds."""
    try:
        first, second = parse_torsions(system.topology, "phi,psi")
    except ValueError:
        first, second = _torsions(system)[:2]
    return first, second


def _torsions(system: MolecularSystem) -> list[Torsion]:
    """Rotatable ones first, then those of the z-matrix."""
    others = [(row[0], row[1], row[2], row[3]) for row in ZMatrix.from_topology(system.topology).rows]
    try:
        return [*default_torsions(system.topology), *others]
    except ValueError:
        return list(others)
