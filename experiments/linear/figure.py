"""The figures: losses and eigenvalue paths as the companion paper shows them, and what closes the gap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from experiments import figures
from experiments.linear.config import TOLERANCE, Job
from experiments.linear.problems import PROBLEMS
from experiments.linear.suites import PLAIN, Config, Line, way_title
from experiments.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Losses that are drawn, with their style.
_LOSSES = {
    PLAIN: {"color": "black"},
    way_title("p4inv", 1, 1): {"color": "tab:blue"},
    way_title("p4inv", 1, 10): {"color": "tab:orange"},
    way_title("p4inv", 1, 50): {"color": "tab:red"},
    way_title("p4inv", 16, 10): {"color": "tab:green"},
    way_title("inverse", 1, 10): {"color": "tab:purple", "linestyle": "--"},
    f"{way_title('p4inv', 1, 1)}, penalty": {"color": "tab:gray", "linestyle": ":"},
}
_EDGE = 2.0


def draw_companion(config: Config, rows: list[Row]) -> Figure | None:
    """A row a target: losses over steps, then the paths of the eigenvalues of W, one panel a way. None without the
    suite."""
    by_job = {Job.of(row): row for row in rows}
    lines = [line for line in config.lines() if line.suite == "companion"]
    problems = list(dict.fromkeys(line.group for line in lines))
    if not problems:
        return None
    figure, axes = figures.panels(len(problems), 4, width=3.0, height=2.7)
    for panels, problem in zip(axes, problems, strict=True):
        by_title = {line.title: line for line in lines if line.group == problem}
        _losses(panels[0], {title: by_job[line.jobs[0]] for title, line in by_title.items() if title in _LOSSES})
        panels[0].set_ylabel(f"{PROBLEMS[problem].title}\nloss", fontsize=8)
        shown = [line for line in by_title.values() if line.jobs[0].paths]
        for panel, line in zip(panels[1:], shown, strict=True):
            _paths(panel, line, by_job[line.jobs[0]])
    axes[-1][0].set_xlabel("steps", fontsize=8)
    axes[0][0].legend(fontsize=5, loc="upper right")
    return figure


def draw_gap(summary: list[Row]) -> Figure | None:
    """Steps to the tolerance: one change at a time from the proposed scheme, and from the naive one."""
    gap = [row for row in summary if row["suite"] == "gap"]
    if not gap:
        return None
    plain = next(row for row in gap if row["title"] == PLAIN)
    figure, axes = figures.panels(1, 2, width=4.6, height=3.6)
    for axis, group in zip(axes[0], ("proposed", "naive"), strict=True):
        rows = [row for row in gap if row["group"] == group]
        values = [row["limit"] if row["steps_mean"] is None else row["steps_mean"] for row in rows]
        colors = [
            "lightgray" if row["steps_mean"] is None else "tab:blue" if place else "black"
            for place, row in enumerate(rows)
        ]
        errors = [0.0 if row["steps_mean"] is None else row["steps_std"] for row in rows]
        axis.barh(range(len(rows)), values, xerr=errors, color=colors, error_kw={"linewidth": 0.8, "ecolor": "gray"})
        axis.set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=7)
        axis.invert_yaxis()
        axis.set_xlabel(f"steps to {TOLERANCE:.0e}, at the best of the rates (gray: not within the limit)", fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        if plain["steps_mean"] is not None:
            axis.axvline(plain["steps_mean"], color="tab:red", linewidth=1, label=f"{PLAIN}, at its best rate")
            axis.legend(fontsize=6)
    axes[0][0].set_title("the proposed scheme (rank n/4), with one change", fontsize=8)
    axes[0][1].set_title("the naive scheme (rank n/4), with one change", fontsize=8)
    return figure


def _losses(axis: Axes, rows: dict[str, Row]) -> None:
    for title, row in rows.items():
        style: dict[str, Any] = _LOSSES[title]
        axis.plot(row["curve"]["steps"], row["curve"]["losses"], label=title, linewidth=1, **style)
    axis.set_yscale("log")
    axis.set_ylim(TOLERANCE / 3, 20)
    axis.tick_params(labelsize=7)


def _paths(axis: Axes, line: Line, row: Row) -> None:
    """Eigenvalues from early (dark) to late (bright), targets as black squares, the final ones as red crosses."""
    job = line.jobs[0]
    target = torch.linalg.eigvals(PROBLEMS[job.problem].target(job.seed))
    path = [torch.tensor(values) for values in row["curve"]["path"]]
    last = max(1, len(path) - 1)
    for place, values in enumerate(path):
        color = [place / last] * len(values)
        axis.scatter(values[:, 0], values[:, 1], s=1.5, c=color, cmap="viridis", vmin=0, vmax=1)
    axis.scatter(target.real, target.imag, s=14, marker="s", facecolors="none", edgecolors="black", linewidths=0.6)
    if path:
        axis.scatter(path[-1][:, 0], path[-1][:, 1], s=9, marker="x", color="red", linewidths=0.6)
    axis.set_title(f"{line.title} ({row['status']}, {row['steps_made']} steps)", fontsize=7)
    axis.set_xlim(-_EDGE, _EDGE)
    axis.set_ylim(-_EDGE, _EDGE)
    axis.set_aspect("equal")
    axis.tick_params(labelsize=6)
