"""How often trajectories cross between two states of a torsion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.flows.monotone import wrapped
from p4torch.molecules.analysis.inputs import series, trajectory_index
from p4torch.molecules.analysis.torsions import Arc, in_arc
from p4torch.molecules.renamed import renamed_keywords

POSITIVE_CORE: Arc = (0.3, 2.1)
NEGATIVE_CORE: Arc = (-2.8, -0.5)


@dataclass(frozen=True)
class Crossings:
    """Counts of each trajectory `(trajectories,)`, in ascending order of the trajectories' ids."""

    between_cores: Tensor
    sign_changes: Tensor


@renamed_keywords(walkers="trajectory_ids")
def count_crossings(
    phi: Tensor, trajectory_ids: Tensor | None = None, positive: Arc = POSITIVE_CORE, negative: Arc = NEGATIVE_CORE
) -> Crossings:
    """Transitions of a torsion `(frames,)` in rad between φ < 0 and φ > 0, of each trajectory.

    `between_cores` counts how often the core that was visited last changes (hysteresis: what turns back between the
    cores is no crossing, by 0 or by ±π). `sign_changes` counts sign changes of φ in [−π, π) between consecutive
    frames, recrossings at 0 and at ±π and all: an upper bound that depends on how often frames are written.

    Args:
        trajectory_ids: `(frames,)` integers, the trajectory of each frame, whose frames are in the order of time; one
            trajectory if None.
        positive: the core of φ > 0, and `negative` that of φ < 0, counter-clockwise arcs in rad.

    Raises:
        ArgumentError: empty, not finite, of different lengths; cores that overlap.
    """
    phi = series(phi, "phi")
    trajectory = trajectory_index(trajectory_ids, phi)
    order = torch.argsort(trajectory, stable=True)
    angle, trajectory = wrapped(phi)[order], trajectory[order]
    above, below = in_arc(angle, positive, "positive"), in_arc(angle, negative, "negative")
    if _overlap(positive, negative):
        raise ArgumentError.of("negative", f"apart from `positive` = {positive}", negative)
    return Crossings(
        between_cores=_changes(above.long() - below.long(), trajectory),
        sign_changes=_changes(torch.where(angle < 0, -1, 1), trajectory),
    )


def _changes(state: Tensor, trajectory: Tensor) -> Tensor:
    """`(trajectories,)`: how often a state of ±1 `(frames,)` changes; frames of state 0 are passed over."""
    known = state != 0
    state, of = state[known], trajectory[known]
    changed = (state[1:] != state[:-1]) & (of[1:] == of[:-1])
    return torch.bincount(of[1:][changed], minlength=int(trajectory.max()) + 1)


def _overlap(first: Arc, second: Arc) -> bool:
    starts = torch.tensor([first[0], second[0]], dtype=torch.float64)
    return bool(in_arc(starts[:1], second).any() or in_arc(starts[1:], first).any())
