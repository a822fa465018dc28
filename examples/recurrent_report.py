"""Table and figure of `examples.recurrent`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from experiments.tables import aligned

from examples.scaffold import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Solved: a loss below this share of the baseline.
SOLVED = 0.1


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of all seeds, by title, in order."""
    titles = dict.fromkeys(row["title"] for row in rows)
    return {title: [row for row in rows if row["title"] == title] for title in titles}


def table(rows: Sequence[Row], baseline: float) -> str:
    """A line a method: means over seeds, the range behind them where seeds differ."""
    goal = SOLVED * baseline
    lines = [{"title": title, "rows": group} for title, group in by_method(rows).items()]
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("recurrent matrix", lambda line: line["title"]),
        ("numbers that train", lambda line: str(line["rows"][0]["matrix_parameters"])),
        ("rate of it", lambda line: f"{line['rows'][0]['rates'][0]:g}" if line["rows"][0]["rates"][0] else ""),
        ("of the rest", lambda line: f"{line['rows'][0]['rates'][1]:g}"),
        (f"steps to {goal:.2g}", lambda line: _to_goal(line["rows"], 0, "{:.0f}")),
        ("seconds to it", lambda line: _to_goal(line["rows"], 1, "{:.2f}")),
        ("last loss", lambda line: _range([row["loss"] for row in line["rows"]], "{:.2g}")),
        ("held-out loss", lambda line: _range([row["held_out_loss"] for row in line["rows"]], "{:.2g}")),
        ("right, %", lambda line: _range([100 * row["right"] for row in line["rows"]], "{:.1f}")),
        ("ms/step", lambda line: f"{statistics.fmean(row['step_milliseconds'] for row in line['rows']):.1f}"),
        ("defect", lambda line: f"{max(row['defect'] for row in line['rows']):.0e}"),
    ]
    seeds = sorted({row["seed"] for row in rows})
    said = (
        f"Without memory the loss is {baseline:.4f}; the goal, {goal:.2g}, is {SOLVED:g} of it, reached when the mean "
        f"loss of ten batches is below. Seeds {seeds}: means, and the least and the largest value. The last loss is "
        "the mean of the last 50 batches; the defect is ‖WᵀW - I‖ / √n at the end."
    )
    return f"{aligned(columns, lines)}\n{said}\n"


def _range(values: Sequence[float], form: str) -> str:
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def _to_goal(rows: Sequence[Row], place: int, form: str) -> str:
    solved = [row["solved"] for row in rows if row["solved"] is not None]
    if not solved:
        return "not reached"
    text = _range([point[place] for point in solved], form)
    return text if len(solved) == len(rows) else f"{text}, {len(solved)} of {len(rows)} seeds"


def figure(rows: Sequence[Row], baseline: float) -> Figure:
    """Losses of all batches over steps and over seconds; with held-out accuracy where it was recorded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    held_out = len(rows[0]["curve"][0]) > 3
    made = Figure(figsize=(12.6 if held_out else 8.4, 3.4), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(1, 3 if held_out else 2)
    panels = [(0, "steps", 2), (1, "CPU seconds", 2), *([(1, "CPU seconds", 4)] if held_out else [])]
    for axis, (across, label, value) in zip(axes, panels, strict=True):
        for index, (title, group) in enumerate(by_method(rows).items()):
            for row in group:
                axis.plot(
                    [point[across] for point in row["curve"]],
                    [point[value] for point in row["curve"]],
                    color=f"C{index}" if row["method"] != "frozen" else "gray",
                    linestyle="--" if row["method"] in ("free", "frozen") else "-",
                    linewidth=1,
                    label=title if row is group[0] else None,
                )
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(labelsize=7)
        if value == 2:
            axis.axhline(baseline, color="black", linewidth=0.8, linestyle=":", label="without memory")
            axis.set_yscale("log")
    axes[0].set_ylabel("loss (mean of ten batches)", fontsize=8)
    axes[0].legend(fontsize=6)
    if held_out:
        axes[2].set_ylabel("right on held-out digits", fontsize=8)
    return made
