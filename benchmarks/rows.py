"""Rows of the table, and jobs that make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

from benchmarks.bars import BARS, Bar
from benchmarks.layers import Missing
from benchmarks.measure import Effort, Seconds, Side, alternate, quartiles, ratio_of, threads

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One ratio, with the quartiles of its pairs; or the reason why there is none."""

    name: str
    sides: str
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    bar: str | None = None
    reason: str | None = None
    failed: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def held_to(self) -> Bar | None:
        return None if self.bar is None else BARS[self.bar]

    def as_json(self) -> dict[str, Any]:
        bar = self.held_to()
        if bar is None:
            return asdict(self)
        met = None if self.ratio is None else bar.met(self.ratio)
        return {**asdict(self), "held_to": {"what": bar.what, "sides": bar.sides, bar.sense: bar.value, "met": met}}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Row:
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "spread": None if fields["spread"] is None else tuple(fields["spread"])})


@dataclass(frozen=True)
class Job:
    """A measurement that makes rows. `cost` is about how many seconds it takes, for the time that is left."""

    family: str
    name: str
    run: Callable[[Effort], list[Row]]
    cost: float = 5.0

    @property
    def title(self) -> str:
        return f"{self.family}/{self.name}"


@dataclass(frozen=True)
class Comparison:
    """Times of all sides that could be measured, and why the others could not."""

    times: Seconds
    absent: dict[str, tuple[str, bool]]
    facts: dict[str, Any]

    def row(self, name: str, top: str, bottom: str, *, bar: str | None = None, floor: str | None = None) -> Row:
        """The ratio top / bottom. `floor` names the side that no implementation could undercut: its ratio to the
        bottom is recorded, too."""
        sides = f"{top} / {bottom}"
        for side in (top, bottom):
            if side in self.absent:
                reason, failed = self.absent[side]
                return Row(name, sides, bar=bar, reason=reason, failed=failed, facts=self.facts)
        ratio, spread = ratio_of(self.times[top], self.times[bottom])
        shown = [side for side in (top, bottom, floor) if side in self.times]
        facts = {
            **self.facts,
            "rounds": len(self.times[top]),
            "milliseconds": {side: [1e3 * value for value in quartiles(self.times[side])] for side in shown},
        }
        if floor in self.times:
            facts["floor_ratio"] = ratio_of(self.times[floor], self.times[bottom])[0]
        return Row(name, sides, ratio, spread, bar, facts=facts)


def compare(builders: dict[str, Callable[[], Side]], effort: Effort, count: int, **facts: Any) -> Comparison:
    """Build all sides, leave out those that are missing or do not run, and time the rest on `count` threads."""
    with threads(count):
        sides, absent = gather(builders)
        times = alternate(sides, effort)
    return Comparison(times, absent, {"threads": count, "dtype": "float32", **facts})


def gather(builders: dict[str, Callable[[], Side]]) -> tuple[dict[str, Side], dict[str, tuple[str, bool]]]:
    """Sides that have run once, and for each other one the reason, and whether it is a failure."""
    sides: dict[str, Side] = {}
    absent: dict[str, tuple[str, bool]] = {}
    for name, build in builders.items():
        side, reason, failed = gathered(name, partial(_tried, build))
        if side is None:
            absent[name] = (reason, failed)
        else:
            sides[name] = side
    return sides, absent


def gathered(name: str, make: Callable[[], T]) -> tuple[T | None, str, bool]:
    """What `make` makes; or None, the reason, and whether it is a failure: a peer that is not there, or does not run on
    this torch, must not end the bench."""
    try:
        return make(), "", False
    except Missing as missing:
        return None, str(missing), False
    except Exception as error:
        text = (str(error).strip().splitlines() or ["no message"])[0]
        return None, f"{name} fails: {type(error).__name__}: {text[:200]}", True


def _tried(build: Callable[[], Side]) -> Side:
    side = build()
    side.prepare()
    side.call()
    return side
