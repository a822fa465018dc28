"""Table and figure of `examples.relora`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from examples.relora_variants import Setting
from examples.scaffold import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    "variant",
    "learning rate",
    "trains",
    "of all",
    "optimizer, bytes",
    "kept beside, bytes",
    "held out, nats a byte",
    "bits",
    "ms",
    "merges",
    "seeds",
)


def table(rows: Sequence[Row], setting: Setting, text: dict[str, Any]) -> str:
    """The variants, and those that differ in their interval alone; what the columns mean."""
    parts = [
        f"Text: {text['name']}, {text['train']:,} bytes, {text['held_out']:,} held out (sha256 {text['sha256']}). "
        f"Width {setting.width}, {setting.depth} blocks, context {setting.context}, batch {setting.batch}; "
        f"{setting.warm} steps of all weights, then {setting.steps} steps; rank {setting.rank}, merges every "
        f"{setting.every} steps, unless N says otherwise. Kept beside: copies, inverses and orders of coordinates in "
        "the perturbations.",
        lines([row for row in rows if not row["study"]]),
    ]
    study = [row for row in rows if row["study"]]
    if study:
        parts += ["Merge intervals, first seed:", lines(study)]
    return "\n\n".join(parts) + "\n"


def lines(rows: Sequence[Row]) -> str:
    """One a variant and rate: means over seeds, with their standard deviation, or the error over windows of one."""
    written = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    for title, rate in dict.fromkeys((row["title"], row["rate"]) for row in rows):
        same = [row for row in rows if (row["title"], row["rate"]) == (title, rate)]
        first, loss = same[0], torch.tensor([row["held_out_nats"] for row in same], dtype=torch.float64)
        error = f"± {float(loss.std()):.4f}" if len(same) > 1 else f"(± {first['held_out_error']:.4f} over windows)"
        seconds = sorted(row["step_seconds"] for row in same)[len(same) // 2]
        cells = (
            title,
            f"{rate:g}",
            f"{first['trainable']:,}",
            f"{100 * first['trainable'] / first['parameters']:.1f} %",
            f"{first['optimizer_bytes']:,}",
            f"{first['beside_bytes']:,}",
            f"{float(loss.mean()):.4f} {error}",
            f"{float(loss.mean()) / math.log(2):.3f}",
            f"{1000 * seconds:.1f}",
            f"{first['merged']}",
            f"{len(same)}",
        )
        written.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in written)


def figure(rows: Sequence[Row]) -> Figure:
    """Held-out loss over steps and over seconds, and over the merge interval, of the first seed."""
    from matplotlib.figure import Figure

    study = [row for row in rows if row["study"]]
    drawn = Figure(figsize=(14, 4) if study else (11, 4), layout="constrained")
    axes = drawn.subplots(1, 3 if study else 2)
    first = rows[0]["seed"]
    for row in rows:
        if row["seed"] == first and row["curve"] and not row["study"]:
            steps, seconds, loss = zip(*row["curve"], strict=True)
            style = "k--" if row["directions"] == "gradient" else {"full": "k-", "lora": "k:"}.get(row["method"], "-")
            for ax, x in zip(axes[:2], (steps, seconds), strict=True):
                ax.plot(x, loss, style, label=row["title"], linewidth=1)
    axes[0].set(xlabel="step", ylabel="held out, nats a byte")
    axes[1].set(xlabel="CPU seconds of one thread")
    if study:
        for method in dict.fromkeys(row["method"] for row in study):
            same = sorted((row["every"], row["held_out_nats"]) for row in study if row["method"] == method)
            axes[2].semilogx(*zip(*same, strict=True), "o-", color="k", label=method)
        axes[2].set(xlabel="merge interval, steps")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return drawn
