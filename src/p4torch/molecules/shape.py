"""What internal and mixed coordinates have in common: a block of atoms to start from, rows for all others, scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.flows.bijection import Bijection, check_event
from p4torch.molecules.checks import check_shape
from p4torch.molecules.frames import components_first, components_last, normalize_weights
from p4torch.molecules.geometry import LEAST_LENGTH
from p4torch.molecules.rows import Rows
from p4torch.molecules.standard import Layout, Standardiser, Torsions
from p4torch.molecules.zmatrix import ZMatrix

#: Frames that are measured together while constants are set: bounds the memory.
CHUNK = 20_000


class ShapeCoordinates(Bijection):
    """x `(..., atoms, 3)` in nm <-> z `(..., 3 atoms - 6)`: y = (block modes, bonds, angles, torsions), standardised.

    `forward` returns log|det ∂z/∂(shape)| = -log J(y) - Σ log scale, where d^{3 atoms}x = J(y) dt dR dy, with t a
    translation and dR the Haar measure on SO(3) of total volume 8π². No constant is left out.

    `start` are coordinates of the block's atoms `(3, m, batch)`, as modes, bonds and angles `(·, batch)`:

        start(x)                       (modes, bonds, angles, log of the volume element `(batch)`), anywhere in space
        .place(modes, bonds, angles)   (atoms in standard position and orientation, log of the volume element)
        .degenerate(x)                 whether atoms anywhere in space have an undefined coordinate, `(batch)`
        .outside(x)                    whether atoms as placed are not in the standard orientation, `(batch)`
    """

    numbers: Tensor
    block: Tensor

    def __init__(self, zmatrix: ZMatrix, start: nn.Module, layout: Layout, torsions: Torsions) -> None:
        super().__init__()
        self.zmatrix, self.layout = zmatrix, layout
        self.start, self.rows = start, Rows(zmatrix)
        self.standard = Standardiser(layout, torsions)
        self.ready = True
        self.register_buffer("block", torch.tensor(zmatrix.block), persistent=False)
        self.register_buffer("numbers", torch.tensor(_numbers(zmatrix)))
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check_ready()
        check_shape(x, len(self.zmatrix))
        y, log_volume = self._measure(components_first(x))
        z, logabsdet = self.standard(y)
        return z.T.reshape(*x.shape[:-2], self.layout.size), (logabsdet - log_volume).reshape(x.shape[:-2])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, logabsdet = self._unstandardised(z)
        modes, bonds, angles, torsions = self._split(y)
        start, bonds, angles, log_start = self._place_start(modes, bonds, angles)
        x, log_rows = self.rows.place(start, bonds, angles, torsions)
        return components_last(x, z.shape[:-1]), (logabsdet + log_start + log_rows).reshape(z.shape[:-1])

    @torch.no_grad()
    def degenerate(self, x: Tensor) -> Tensor:
        """Frames `(...)` that are not finite or have an undefined coordinate: atoms that coincide or lie in a line.

        Results for such frames are finite (if the frame is) and mean nothing; other frames do not notice.
        """
        check_shape(x, len(self.zmatrix))
        points = components_first(x)
        flags = self.start.degenerate(points.index_select(1, self.block)) | self.rows.degenerate(points)  # type: ignore[operator]
        return (flags | ~points.isfinite().all(0).all(0)).reshape(x.shape[:-2])

    @torch.no_grad()
    def outside(self, z: Tensor) -> Tensor:
        """Points `(...)` that `forward` never returns: bonds <= 0, angles outside (0, π), torsions beyond the cut, a
        block in another orientation than the standard one.

        `inverse` makes something finite of them; as samples, they have weight zero.
        """
        y, _ = self._unstandardised(z)
        modes, bonds, angles, _ = self._split(y)
        flags = ~(bonds > LEAST_LENGTH).all(0) | ~((angles > 0) & (angles < torch.pi)).all(0)
        start = self._place_start(modes, bonds, angles)[0]
        flags = flags | self.standard.beyond_cut(y) | self.start.outside(start)  # type: ignore[operator]
        return flags.reshape(z.shape[:-1])

    def _fit(self, frames: Tensor, share: Tensor) -> None:
        """Set means, scales and cuts by usable frames, and weights that sum to 1."""
        chunks = frames.split(CHUNK)
        bad = torch.cat([self.degenerate(chunk) for chunk in chunks]).nonzero().flatten().tolist()
        if bad:
            got = f"frames {bad[:5]}" + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            raise ArgumentError.of("frames", "without atoms that coincide or lie in a line", got)
        with torch.no_grad():
            y = torch.cat([self._measure(components_first(chunk))[0] for chunk in chunks], -1)
        self.standard.fit(y, share)

    def _check_ready(self) -> None:
        if not self.ready:
            raise ArgumentError.of("frames", "given, or `reference`, or a checkpoint loaded, before use", None)

    def _unstandardised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self._check_ready()
        check_event(z, self.layout.size, name="z")
        return self.standard.inverse(z.reshape(-1, self.layout.size).T.contiguous())

    def _split(self, y: Tensor) -> tuple[Tensor, ...]:
        layout = self.layout
        return y.split([len(part) for part in (layout.block, layout.bonds, layout.angles, layout.torsions)])

    def _place_start(self, modes: Tensor, bonds: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(the block's atoms, the rows' bonds, the rows' angles, log of the block's volume element)."""
        rows = len(self.layout.torsions)
        own_bonds, own_angles = len(bonds) - rows, len(angles) - rows
        start, log_volume = self.start.place(modes, bonds[:own_bonds], angles[:own_angles])  # type: ignore[operator]
        return start, bonds[own_bonds:], angles[own_angles:], log_volume

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y `(n, batch)`, log J `(batch)`) of points `(3, atoms, batch)`."""
        modes, own_bonds, own_angles, log_start = self.start(x.index_select(1, self.block))
        bonds, angles, torsions, log_rows = self.rows.measure(x)
        return torch.cat([modes, own_bonds, bonds, own_angles, angles, torsions]), log_start + log_rows

    def extra_repr(self) -> str:
        return f"atoms={len(self.zmatrix)}, features={self.layout.size}"


def usable_frames(zmatrix: ZMatrix, frames: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Frames `(frames, atoms, 3)` in float64 and weights that sum to 1.

    Raises:
        ArgumentError: there are fewer than two, of another shape, or some that are not finite.
    """
    check_shape(frames, len(zmatrix), "frames")
    if frames.dim() != 3 or len(frames) < 2:
        raise ArgumentError.of("frames", f"of shape (two or more, {len(zmatrix)}, 3)", tuple(frames.shape))
    broken = (~frames.isfinite().all(-1).all(-1)).nonzero().flatten().tolist()
    if broken:
        raise ArgumentError.of("frames", "finite", f"{len(broken)} that are not, the first is frame {broken[0]}")
    return frames.detach().double(), normalize_weights(weights, len(frames), frames)


def _numbers(zmatrix: ZMatrix) -> list[int]:
    return [*zmatrix.block, *(atom for row in zmatrix.rows for atom in row)]


def _loaded(module: nn.Module, _: object) -> None:
    """Constants belong to the z-matrix that they were made for."""
    assert isinstance(module, ShapeCoordinates)
    expected, got = _numbers(module.zmatrix), module.numbers.tolist()
    module.ready = got == expected
    if not module.ready:
        raise CheckpointError(f"the checkpoint must be of coordinates with the z-matrix {expected}, got {got}")
