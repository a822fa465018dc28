"""Tasks and their parts: what is asked for, and what runs, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.arrival.training import Record
from benchmarks.arrival.ways import Options, Way


@dataclass(frozen=True)
class Request:
    """What a run is asked for."""

    seeds: tuple[int, ...] = (0, 1, 2)
    scale: float = 1.0
    options: Options = field(default_factory=Options)
    #: Instead of the tasks' own sizes, where they have several.
    sizes: tuple[int, ...] | None = None
    sides: tuple[str, ...] = ("p4", "peers")

    def steps(self, steps: int) -> int:
        """Scaled, at least one."""
        return max(1, round(self.scale * steps))

    def among(self, ways: Sequence[Way]) -> list[Way]:
        """Those on the sides that run."""
        return [way for way in ways if ("p4" if way.ours else "peers") in self.sides]

    def settings(self) -> dict[str, Any]:
        """What a finished task must agree in, as JSON holds it."""
        return {
            "seeds": list(self.seeds),
            "steps_scale": self.scale,
            "p4": str(self.options),
            "sizes": None if self.sizes is None else list(self.sizes),
            "sides": list(self.sides),
        }


@dataclass(frozen=True)
class Cell:
    """A part of a task: it makes records, and sees those of the task's earlier parts. `cost` is about how many
    seconds it takes."""

    title: str
    cost: float
    run: Callable[[Sequence[Record]], list[Record]]


@dataclass(frozen=True)
class Task:
    """A question: its parts, and the table of their records, as Markdown."""

    title: str
    cells: Callable[[Request], list[Cell]]
    table: Callable[[Sequence[Record]], str]


def cost(features: int, ways: int, steps: int) -> float:
    """About how many seconds `ways` trainings of an n x n layer take on one core."""
    return ways * steps * (3e-4 + 4e-8 * features**2)
