"""The suites: which jobs stand behind which lines of the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.checks import check_counts, check_integers, check_names, check_rate
from experiments.command import Overrides, configured
from experiments.linear import settings
from experiments.linear.config import Job
from experiments.linear.problems import PROBLEMS

#: Of the line that others are compared with.
PLAIN = "plain matrix"


@dataclass(frozen=True)
class Line:
    """One line of a table: a setting, with every learning rate that it is tried at, and every seed.

    Attributes:
        suite, group: which table, and which part of it.
    """

    suite: str
    group: str
    title: str
    jobs: tuple[Job, ...]

    @property
    def reference(self) -> str | None:
        """Title of the line of the same suite and problem that steps are divided by."""
        return PLAIN if self.title != PLAIN else None


@dataclass(frozen=True)
class Config:
    """What a run consists of.

    Args:
        suites: names out of `SUITES`.
        seeds: of "equal-rate", "gap" and "inverse"; the companion's suite takes the first one.
        rates: the learning rates of "gap".
        sizes: of "cost".
        cap: a limit to the steps of all jobs, or None.
    """

    suites: tuple[str, ...]
    seeds: tuple[int, ...] = settings.SEEDS
    rates: tuple[float, ...] = settings.RATES
    sizes: tuple[int, ...] = settings.SIZES
    cap: int | None = None

    def __post_init__(self) -> None:
        check_names("suites", self.suites, SUITES)
        check_integers("seeds", self.seeds, 0)
        for rate in self.rates:
            check_rate(rate)
        if self.cap is not None:
            check_counts(self, "cap")

    def lines(self) -> list[Line]:
        """All lines of the suites asked for; "cost" has none: it is measured by itself."""
        return [line for name in self.suites for line in SUITES[name](self)]

    def jobs(self) -> list[Job]:
        """All jobs, each once, whatever the number of lines that it stands in."""
        return list(dict.fromkeys(job for line in self.lines() for job in line.jobs))

    def job(self, **options: Any) -> Job:
        """A job within the cap."""
        steps: int = options.pop("steps")
        return Job(**options, steps=steps if self.cap is None else min(steps, self.cap))

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {"experiment": "linear", **asdict(self)}

    def line(
        self,
        suite: str,
        group: str,
        title: str,
        options: dict[str, Any],
        *,
        rates: tuple[float, ...] | None = None,
        seeds: tuple[int, ...] | None = None,
    ) -> Line:
        """A setting at all `rates` (or at its own one) with all seeds."""
        rates = rates or (options["learning_rate"],)
        jobs = tuple(
            self.job(**{**options, "learning_rate": rate, "seed": seed})
            for rate in rates
            for seed in (self.seeds if seeds is None else seeds)
        )
        return Line(suite, group, title, jobs)


def companion(config: Config) -> list[Line]:
    """Three targets, three ways; N at rank 1, then ranks."""
    schedules = [(1, every) for every in settings.INTERVALS]
    schedules += [(rank, settings.RANK_INTERVAL) for rank in settings.RANKS[1:]]
    lines = []
    for problem, common in settings.COMPANION.items():
        by_title: dict[str, dict[str, Any]] = {PLAIN: {"way": "plain", "paths": True}}
        limits = {"p4inv": common["steps"], "inverse": settings.COMPANION_INVERSE_STEPS[problem]}
        for way, limit in limits.items():
            for rank, every in schedules:
                shown = (rank, every) == (1, settings.RANK_INTERVAL)
                options = {"rank": rank, "every": every, "scaled": rank > 1, "paths": shown, "steps": limit}
                by_title[way_title(way, rank, every)] = {"way": way, **options}
        if problem == settings.PENALTY_PROBLEM:
            by_title[f"{way_title('p4inv', 1, 1)}, penalty"] = {"way": "p4inv", "every": 1, **settings.PENALTY}
        lines += [
            config.line("companion", problem, title, {**common, "problem": problem, **options}, seeds=config.seeds[:1])
            for title, options in by_title.items()
        ]
    return lines


def equal_rate(config: Config) -> list[Line]:
    """Rank 8 against the matrix, at one learning rate."""
    lines = {PLAIN: {"way": "plain"}}
    lines |= {title: settings.EQUAL_RATE_P4INV | options for title, options in settings.EQUAL_RATE_LINES.items()}
    return [config.line("equal-rate", "", title, settings.EQUAL_RATE | options) for title, options in lines.items()]


def gap(config: Config) -> list[Line]:
    """Ranks and intervals of the proposed scheme; what each of its parts does for it, and for the naive scheme."""
    grid = {
        f"rank {rank}, N = {every}": {**settings.PROPOSED, "rank": rank, "every": every}
        for rank in settings.GAP_RANKS
        for every in settings.GAP_INTERVALS
    }
    groups = {
        "grid": {PLAIN: {"way": "plain"}, **grid},
        "proposed": _changes("proposed scheme", settings.PROPOSED, settings.WITHOUT),
        "naive": _changes("naive scheme", settings.NAIVE, settings.WITH),
    }
    return [
        config.line("gap", group, title, settings.GAP | options, rates=config.rates)
        for group, lines in groups.items()
        for title, options in lines.items()
    ]


def inverse(config: Config) -> list[Line]:
    """SO(128) through the inverse, each line at its own best rate: what converges, one change at a time, and the
    companion's way."""
    lines = {
        PLAIN: {"way": "plain"},
        **_changes("proposed scheme", settings.INVERSE_PROPOSED, settings.INVERSE_WITHOUT),
        "the companion's": settings.INVERSE_NAIVE,
    }
    rates = settings.INVERSE_RATES if config.cap is None else settings.INVERSE_RATES[:1]
    return [
        config.line("inverse", "", title, settings.INVERSE | options, rates=rates) for title, options in lines.items()
    ]


def _changes(title: str, start: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options of a line, and of those with one change each."""
    return {title: start, **{name: {**start, **change} for name, change in changes.items()}}


def way_title(way: str, rank: int, every: int) -> str:
    """For people."""
    return f"{'P4Inv' if way == 'p4inv' else 'inverse'}, rank {rank}, N = {every}"


#: In the order of the tables. "cost" is no training: see `cost`.
SUITES: dict[str, Callable[[Config], list[Line]]] = {
    "companion": companion,
    "equal-rate": equal_rate,
    "gap": gap,
    "inverse": inverse,
    "cost": lambda config: [],
}


def resolve(overrides: Overrides, stored: Path | None = None, *, short: bool = False) -> Config:
    """The configuration: all suites, or the short ones, or those of a run that is resumed; then what was asked for."""
    preset = {"suites": tuple(SUITES), **(settings.SHORT if short else {})}
    return Config(**configured("linear", [field.name for field in fields(Config)], preset, overrides, stored))


def listing() -> str:
    """Suites and targets, for people."""
    config = Config(tuple(SUITES))
    counts = {name: len({job for line in make(config) for job in line.jobs}) for name, make in SUITES.items()}
    suites = (f"  {name}: {count} trainings" if count else f"  {name}" for name, count in counts.items())
    targets = (f"  {name}: {problem.title}" for name, problem in PROBLEMS.items())
    return "\n".join(["suites", *suites, "targets", *targets])
