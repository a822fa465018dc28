"""How often walkers cross between two states of a torsion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.inputs import series, walker_index
from p4torch.molecules.analysis.torsions import Arc, in_arc, wrap

POSITIVE_CORE: Arc = (0.3, 2.1)
NEGATIVE_CORE: Arc = (-2.8, -0.5)


@dataclass(frozen=True)
class Crossings:
    """Counts of each walker `(walkers,)`, in ascending order of the walkers' numbers."""

    between_cores: Tensor
    sign_changes: Tensor


def count_crossings(
    phi: Tensor, walkers: Tensor | None = None, positive: Arc = POSITIVE_CORE, negative: Arc = NEGATIVE_CORE
) -> Crossings:
    """Transitions of a torsion `(frames,)` in rad between φ < 0 and φ > 0, of each walker.

    `between_cores` counts how often the core that was visited last changes (hysteresis: what turns back between the
    cores is no crossing, by 0 or by ±π). `sign_changes` counts sign changes of φ in [−π, π) between consecutive
    frames, recrossings at 0 and at ±π and all: an upper bound that depends on how often frames are written.

    Args:
        walkers: `(frames,)` integers, the walker of each frame; its frames in the order of time. None: one walker.
        positive: the core of φ > 0, and `negative` that of φ < 0, counter-clockwise arcs in rad.

    Raises:
        ArgumentError: empty, not finite, of different lengths; cores that overlap.
    """
    phi = series(phi, "phi")
    walker = walker_index(walkers, phi)
    order = torch.argsort(walker, stable=True)
    angle, walker = wrap(phi)[order], walker[order]
    above, below = in_arc(angle, positive, "positive"), in_arc(angle, negative, "negative")
    if _overlap(positive, negative):
        raise ArgumentError.of("negative", f"apart from `positive` = {positive}", negative)
    return Crossings(
        between_cores=_changes(above.long() - below.long(), walker),
        sign_changes=_changes(torch.where(angle < 0, -1, 1), walker),
    )


def _changes(state: Tensor, walker: Tensor) -> Tensor:
    """`(walkers,)`: how often a state of ±1 `(frames,)` changes; frames of state 0 are passed over."""
    known = state != 0
    state, of = state[known], walker[known]
    changed = (state[1:] != state[:-1]) & (of[1:] == of[:-1])
    return torch.bincount(of[1:][changed], minlength=int(walker.max()) + 1)


def _overlap(first: Arc, second: Arc) -> bool:
    starts = torch.tensor([first[0], second[0]], dtype=torch.float64)
    return bool(in_arc(starts[:1], second).any() or in_arc(starts[1:], first).any())
