"""How a generator is trained: first by likelihood, then by forces or energies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from p4torch._options import check_integer
from p4torch.errors import ArgumentError

#: Steps between merges. Fewer bring more directions; each costs some 2 ms a layer.
MERGE_EVERY = 20
#: The same for layers whose whole matrices move: they need no new directions.
WHOLE_MERGE_EVERY = 1000
#: Learning rate of perturbations of rank one, in learning rates of other parameters. At 1 the linear layers shake: the
#: likelihood of flows of 50 such layers is 0.9 nats worse after 20,000 steps.
PERTURBATION_RATE = 0.1
#: The same for whole matrices, whose B has a scale of its own. After 500 steps held-out -log q is 81.89, 81.86 and
#: 81.98 at rates of 1, 0.2 and 0.05 (82.23 with swaps in their place).
WHOLE_PERTURBATION_RATE = 0.2


@dataclass(frozen=True)
class Phase:
    """Steps of one kind, with an Adam of their own: linear warm-up, then a cosine down to 0.

        loss = λ mean(-log q(frames)) + mean(u(samples) + log q(samples))

    With forces, samples have their weights, and path gradients (see `p4torch.flows.path_loss`):

        loss = λ mean(-log q(frames)) + Σ w (-log q(samples)) / Σ w

    Attributes:
        steps: of the optimizer.
        frames: of a batch, for the first term; 0 leaves it out.
        samples: of a batch, for the second; 0 leaves it out.
        learning_rate: at its top.
        likelihood: λ.
        forces: learn from the forces at samples, instead of their energies.
    """

    steps: int
    frames: int = 256
    samples: int = 0
    learning_rate: float = 1e-3
    likelihood: float = 1.0
    forces: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "frames", "samples"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 0))
        if self.frames + self.samples == 0:
            raise ArgumentError.of("frames", ">= 1 where samples = 0", 0)
        if self.forces and self.samples == 0:
            raise ArgumentError.of("samples", ">= 1 where forces = True", 0)
        for name in ("learning_rate", "likelihood"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError.of(name, "positive and finite", getattr(self, name))

    @property
    def points(self) -> int:
        """That pass through the flow in all."""
        return self.steps * (self.frames + self.samples)

    @property
    def chunk(self) -> int:
        """Batches that are handed over together: some 2,500 points."""
        return max(1, 2560 // (self.frames + self.samples))

    @property
    def every(self) -> int:
        """Steps between two lines of the log and two checkpoints: some 128,000 points, in whole chunks."""
        return max(1, 128_000 // (self.chunk * (self.frames + self.samples))) * self.chunk


@dataclass(frozen=True)
class Schedule:
    """Phases in their order, and what they share.

    Attributes:
        merge_every: steps between merges of perturbed layers.
        perturbation_rate: the learning rate of perturbations, in learning rates of all other parameters.
        clip: the largest norm of a gradient.
        seed: of all random numbers.
    """

    phases: tuple[Phase, ...]
    merge_every: int = MERGE_EVERY
    perturbation_rate: float = PERTURBATION_RATE
    clip: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "merge_every", check_integer("merge_every", self.merge_every, 1))
        for name in ("perturbation_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError.of(name, "positive and finite", getattr(self, name))

    @property
    def points(self) -> int:
        """That pass through the flow in all: the measure of progress."""
        return sum(phase.points for phase in self.phases)

    @property
    def evaluations(self) -> int:
        """Energies with gradients that it takes."""
        return sum(phase.steps * phase.samples for phase in self.phases)

    def fields(self) -> dict[str, Any]:
        """Plain values, for configurations, where phases are called stages."""
        values = asdict(self)
        return {"stages": list(values.pop("phases")), **values}

    def adopted(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """Fields of a training's schedule, with this one's phases if theirs are the first of these: phases may be added
        to a training, and what an earlier version did not know of a phase is as by default."""
        expected = self.fields()["stages"]
        try:
            phases = [asdict(Phase(**phase)) for phase in recorded.get("stages", [])]
        except (ArgumentError, TypeError):
            return recorded
        begun = len(phases) > 0 and expected[: len(phases)] == phases
        return {**recorded, "stages": expected if begun else phases}
