"""One job: a matrix that is trained in one way. Everything that its numbers depend on is a field."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from experiments.checks import check_counts, check_names, check_rate
from experiments.linear.problems import PROBLEMS
from p4torch.core.low_rank import Directions
from p4torch.errors import ArgumentError
from p4torch.merging.optimizer_state import OptimizerState

Way = Literal["plain", "p4inv", "inverse"]
Form = Literal["additive", "exponential"]
Through = Literal["forward", "inverse"]

#: A job stops when |W - T|² / n, the loss over all x, is below it.
TOLERANCE = 1e-5
#: Rows x of a step.
BATCH = 256


@dataclass(frozen=True)
class Job:
    """W = I is trained until x Wᵀ is x Tᵀ, or for `steps` steps.

        plain:    W is a matrix
        p4inv:    W = R_B(A)
        inverse:  W = R_B(A)⁻¹, by the fast inverse of P4Inv (equation 3 of the paper)

    Args:
        problem: the name of T, see `problems`.
        seed: of T, x and directions.
        steps: the limit.
        learning_rate, optimizer: "sgd" (no momentum) or "adam" (torch's defaults).
        clip: largest norm of the gradient of all that trains, or None.
        rank, form, directions, train_directions, through, growth: of `p4.Invertible`.
        scaled: directions of length k^(-1/2) · N(0, 1) instead of N(0, 1).
        bounds: whether merges are refused beyond the paper's bounds of log|det|.
        force_every: of `p4.Invertible`: after so many refusals in a row the bounds are ignored once; 0 for never.
        penalty: weight of the penalty on these bounds, 0 for none.
        every, optimizer_state: of `p4.MergeScheduler`.
        paths: whether eigenvalues of W are recorded on the way.
    """

    problem: str
    way: Way
    seed: int
    steps: int
    learning_rate: float
    optimizer: Literal["adam", "sgd"] = "adam"
    clip: float | None = None
    rank: int = 1
    every: int = 10
    form: Form = "additive"
    directions: Directions = "random"
    scaled: bool = False
    train_directions: bool = True
    through: Through = "forward"
    growth: float | None = None
    bounds: bool = True
    force_every: int = 10
    penalty: float = 0.0
    optimizer_state: OptimizerState = "reset_directions"
    paths: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("problem", tuple(PROBLEMS)),
            ("way", get_args(Way)),
            ("optimizer", ("adam", "sgd")),
            ("form", get_args(Form)),
            ("directions", get_args(Directions)),
            ("through", get_args(Through)),
            ("optimizer_state", get_args(OptimizerState)),
        ):
            check_names(name, (getattr(self, name),), known)
        check_counts(self, "steps", "rank", "every")
        check_rate(self.learning_rate)
        for name in ("clip", "growth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ArgumentError.of(name, "a positive number or None", value)
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            raise ArgumentError.of("penalty", "a number >= 0", self.penalty)
        if self.penalty and not self.bounds:
            raise ArgumentError.of("penalty", "0 where there are no bounds to penalise", self.penalty)

    @property
    def scale(self) -> float:
        """Length of a direction's entries."""
        return self.rank**-0.5 if self.scaled else 1.0

    @property
    def name(self) -> str:
        """Of its file: what people look for, and a digest of all fields."""
        digest = hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.problem}-{self.way}-{digest}"

    @property
    def title(self) -> str:
        """For people."""
        rate = f"lr {self.learning_rate:g}, seed {self.seed}"
        if self.way == "plain":
            return f"{self.problem}, plain, {rate}"
        return f"{self.problem}, {self.way}, rank {self.rank}, N = {self.every}, {rate}"

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Job:
        """The job of a row."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})
