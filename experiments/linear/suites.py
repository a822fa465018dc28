"""The suites: which jobs stand behind which lines of the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from experiments.checks import check_counts, check_integers, check_names, check_rate
from experiments.linear import settings
from experiments.linear.config import Job

#: Of the line that others are compared with.
PLAIN = "plain matrix"


@dataclass(frozen=True)
class Line:
    """One line of a table: a setting, with every learning rate that it is tried at, and every seed.

    Attributes:
        suite, group: which table, and which part of it.
        reference: title of the line of the same suite and problem that steps are divided by, or none.
    """

    suite: str
    group: str
    title: str
    jobs: tuple[Job, ...]
    reference: str | None = None


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
        reference: str | None = None,
    ) -> Line:
        """A setting at all `rates` (or at its own one) with all seeds."""
        rates = rates or (options["learning_rate"],)
        jobs = tuple(
            self.job(**{**options, "learning_rate": rate, "seed": seed})
            for rate in rates
            for seed in (self.seeds if seeds is None else seeds)
        )
        return Line(suite, group, title, jobs, reference)


def companion(config: Config) -> list[Line]:
    """Three targets, three ways; N at rank 1, then ranks."""
    lines = []
    for problem, common in settings.COMPANION.items():
        base = {**common, "problem": problem}

        def add(title: str, base: dict[str, Any] = base, problem: str = problem, **options: Any) -> None:
            reference = PLAIN if title != PLAIN else None
            combined = {**base, **options}
            lines.append(
                config.line("companion", problem, title, combined, seeds=config.seeds[:1], reference=reference)
            )

        add(PLAIN, way="plain", paths=True)
        limits = {"p4inv": common["steps"], "inverse": settings.COMPANION_INVERSE_STEPS[problem]}
        for way, limit in limits.items():
            for rank, every in [
                *((1, every) for every in settings.INTERVALS),
                *((rank, settings.RANK_INTERVAL) for rank in settings.RANKS[1:]),
            ]:
                shown = (rank, every) == (1, settings.RANK_INTERVAL)
                options = {"rank": rank, "every": every, "scaled": rank > 1, "paths": shown, "steps": limit}
                add(way_title(way, rank, every), way=way, **options)
        if problem == settings.PENALTY_PROBLEM:
            title = f"{way_title('p4inv', 1, 1)}, penalty"
            add(title, way="p4inv", every=1, **settings.PENALTY)
    return lines


def equal_rate(config: Config) -> list[Line]:
    """Rank 8 against the matrix, at one learning rate."""
    common, suite = settings.EQUAL_RATE, "equal-rate"
    lines = [config.line(suite, "", PLAIN, {**common, "way": "plain"})]
    for title, options in settings.EQUAL_RATE_LINES.items():
        combined = {**common, **settings.EQUAL_RATE_P4INV, **options}
        lines.append(config.line(suite, "", title, combined, reference=PLAIN))
    return lines


def gap(config: Config) -> list[Line]:
    """Ranks and intervals of the proposed scheme; what each of its parts does for it, and for the naive scheme."""

    def at_best(group: str, title: str, options: dict[str, Any]) -> Line:
        combined = {**settings.GAP, **options}
        reference = PLAIN if title != PLAIN else None
        return config.line("gap", group, title, combined, rates=config.rates, reference=reference)

    lines = [at_best("grid", PLAIN, {"way": "plain"})]
    for rank in settings.GAP_RANKS:
        for every in settings.GAP_INTERVALS:
            options = {**settings.PROPOSED, "rank": rank, "every": every}
            lines.append(at_best("grid", f"rank {rank}, N = {every}", options))
    for group, start, changes in (
        ("proposed", settings.PROPOSED, settings.WITHOUT),
        ("naive", settings.NAIVE, settings.WITH),
    ):
        lines.append(at_best(group, f"{group} scheme", start))
        lines += [at_best(group, title, {**start, **change}) for title, change in changes.items()]
    return lines


def inverse(config: Config) -> list[Line]:
    """SO(128) through the inverse, each line at its own best rate: what converges, one change at a time, and the
    companion's way."""
    lines = {
        PLAIN: {"way": "plain"},
        "proposed scheme": settings.INVERSE_PROPOSED,
        **{title: {**settings.INVERSE_PROPOSED, **change} for title, change in settings.INVERSE_WITHOUT.items()},
        "the companion's": settings.INVERSE_NAIVE,
    }
    rates = settings.INVERSE_RATES if config.cap is None else settings.INVERSE_RATES[:1]
    return [
        config.line(
            "inverse",
            "",
            title,
            {**settings.INVERSE, **options},
            rates=rates,
            reference=PLAIN if title != PLAIN else None,
        )
        for title, options in lines.items()
    ]


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
