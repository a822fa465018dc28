"""What is recorded of a training: evenly over its steps, however many they turn out to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

#: At most so many points of a loss curve, and so many of an eigenvalue path.
POINTS, PATH_POINTS = 160, 32


class Trace:
    """Losses, residuals and eigenvalues every `stride` steps; when they become too many, every second one is dropped
    and the stride doubled. Steps that are looked at do not depend on how long the training will be.

    `measure(paths)` gives loss, residual and, if `paths`, eigenvalues of the moment.
    """

    def __init__(self, measure: Callable[[bool], dict[str, Any]], paths: bool = False) -> None:
        self._measure, self._paths = measure, paths
        self._stride = self._path_stride = 1
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.path: list[tuple[int, Tensor]] = []
        self.worst: float | None = None

    def look(self, step: int) -> None:
        """Record this step, if it is its turn."""
        if step % self._stride == 0:
            self._record(step, self._paths and step % self._path_stride == 0)

    def end(self, step: int) -> None:
        """Record the last step in any case, once."""
        if self.steps[-1] == step:
            self.steps.pop()
            self.losses.pop()
        self.path = [point for point in self.path if point[0] != step]
        self._record(step, self._paths)

    def _record(self, step: int, path: bool) -> None:
        values = self._measure(path)
        self.steps.append(step)
        self.losses.append(values["loss"])
        if values["residual"] is not None:
            self.worst = values["residual"] if self.worst is None else max(self.worst, values["residual"])
        if path and values["eigenvalues"] is not None:
            self.path.append((step, values["eigenvalues"]))
        if len(self.steps) > POINTS:
            self._stride *= 2
            kept = [index for index, at in enumerate(self.steps) if at % self._stride == 0]
            self.steps, self.losses = [self.steps[i] for i in kept], [self.losses[i] for i in kept]
        if len(self.path) > PATH_POINTS:
            self._path_stride *= 2
            self.path = [point for point in self.path if point[0] % self._path_stride == 0]

    def curve(self) -> dict[str, Any]:
        """For JSON: four digits of a loss, three decimals of an eigenvalue."""
        curve: dict[str, Any] = {"steps": self.steps, "losses": [float(f"{loss:.4g}") for loss in self.losses]}
        if self._paths:
            curve["path_steps"] = [step for step, _ in self.path]
            curve["path"] = [
                [[round(value.real, 3), round(value.imag, 3)] for value in values.tolist()] for _, values in self.path
            ]
        return curve
