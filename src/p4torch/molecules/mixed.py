"""Mixed coordinates: a rigid block in whitened Cartesian modes, bonds, angles and torsions for all other atoms."""

from __future__ import annotations

from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.checks import check_shape
from p4torch.molecules.rigid import EckartBlock
from p4torch.molecules.shape import ShapeCoordinates, usable_frames
from p4torch.molecules.standard import Layout, Torsions
from p4torch.molecules.zmatrix import ZMatrix


class MixedCoordinates(ShapeCoordinates):
    """x `(..., atoms, 3)` in nm <-> z `(..., 3 atoms - 6)`: block modes, bonds, angles and torsions, standardised.

    The m atoms of the z-matrix's block, with their mean at 0 and in the orientation that fits a reference r best, are
    s = B q: 3m - 6 linear modes q, principal axes of the frames. With t the block's mean, dR the Haar measure on SO(3)
    of total volume 8π², and (r_i, θ_i, φ_i) of the other atoms:

        d^{3 atoms}x = J Π_i r_i² sin θ_i  dt dR dq Π_i dr_i dθ_i dφ_i
        J = m^{3/2} |det M| / sqrt(det I),   M = Σ_j [(r_j·s_j) 1 - s_j r_jᵀ],   I the same with s = r

    A molecule with the density exp(-U(x)/kT) in x thus has log-density -U/kT - log|det| + constant in z, log|det| as
    `forward` returns it (or + log|det| as `inverse` does). Nothing is left out of either: per frame, the volume of
    rigid motions is that of t and 8π². `inverse` returns the block in the orientation of the reference, mean at 0; it
    needs no superposition. The first three derivatives of `forward` are exact, higher ones are not.

    Modes, bonds and angles are less their mean, by their standard deviation. Torsions are cut where their density is
    least and lie in [-π, π).

    Work is done in the dtype of the points; constants are made in float64.

    Args:
        zmatrix: which atoms are the block, and rows for the others.
        frames: `(frames, atoms, 3)` that set reference, modes, means, scales and cuts.
        weights: of the frames `(frames,)`; equal by default.
        reference: a frame `(atoms, 3)` to superpose on, instead of the frames' mean. Without frames, too: then modes
            are any orthonormal ones, and nothing is scaled. With neither, load a checkpoint before use.
        torsions: "circle" leaves them in rad, in [-π, π); "standard" takes mean and standard deviation out, too.

    Raises:
        ArgumentError: the block lies in a line; or the frames do not fit the z-matrix, are not finite, degenerate, or
            do not vary.
    """

    def __init__(
        self,
        zmatrix: ZMatrix,
        frames: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        reference: Tensor | None = None,
        torsions: Torsions = "circle",
    ) -> None:
        start = EckartBlock(len(zmatrix.block))
        super().__init__(zmatrix, start, Layout.of(zmatrix.rows, start.size), torsions)
        self.ready = frames is not None or reference is not None
        if reference is not None:
            check_shape(reference, len(zmatrix), "reference")
            if reference.dim() != 2 or not bool(reference.isfinite().all()):
                raise ArgumentError.of("reference", "one finite frame (atoms, 3)", tuple(reference.shape))
            reference = reference.detach().double()[self.block]
            start.refer(reference)
        if frames is not None:
            frames, share = usable_frames(zmatrix, frames, weights)
            start.fit(frames[:, self.block], share, reference is None)
            self._fit(frames, share)
