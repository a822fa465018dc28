"""The posterior of the two-moons simulator by sbi: its own neural spline flow, and one of p4torch.

    python -m examples.two_moons --out runs/two-moons
    python -m examples.two_moons --short

    p = (r cos a + 1/4, r sin a),   a ~ U(-π/2, π/2),  r ~ N(0.1, 0.01²),   x = p + (-|θ₁ + θ₂|, θ₂ - θ₁)/√2

Both estimators are trained by NPE with sbi's defaults on the same simulations. Their samples are compared with exact
ones by a classifier's accuracy (C2ST): 0.5 where it cannot tell them apart.

Source: Greenberg, Nonnenmacher and Macke (2019); Lueckmann et al. (2021), task T.8.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from examples.scaffold import Row, run_setting
from p4torch.runs.folder import read_json, write_json
from p4torch.runs.runner import Results

MODULE = "examples.two_moons"
#: Observations at which posteriors are compared: of one and of two moons.
OBSERVATIONS = ((0.0, 0.0), (-0.4, 0.3), (-0.8, -0.2))


@dataclass(frozen=True)
class Setting:
    """The size of everything."""

    simulations: int = 10_000
    epochs: int = 2**31 - 1
    samples: int = 2000


SHORT = Setting(simulations=400, epochs=1, samples=100)


def estimators() -> dict[str, Any]:
    """What NPE takes, by method."""
    from p4torch.interop.sbi import density_estimator

    return {"sbi's NSF": "nsf", "p4torch splines and P4 layers": density_estimator()}


def crescent(count: int, generator: torch.Generator) -> Tensor:
    """p `(count, 2)`."""
    angle = (torch.rand(count, generator=generator) - 0.5) * math.pi
    radius = 0.1 + 0.01 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:
    """x for parameters `(count, 2)`."""
    a, b = theta.unbind(-1)
    return crescent(len(theta), generator) + torch.stack([-(a + b).abs(), b - a], -1) / math.sqrt(2)


def posterior(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Exact samples `(count, 2)` of θ given x `(2,)`, for a uniform prior on [-1, 1]².

    Given p, (|θ₁ + θ₂|, θ₁ - θ₂) = √2 (p - x), of which the sign of θ₁ + θ₂ is free; what lies outside of the prior is
    drawn again.
    """
    drawn: list[Tensor] = []
    while sum(map(len, drawn)) < count:
        total, difference = (math.sqrt(2) * (crescent(4 * count, generator) - x)).unbind(-1)
        sign = 2 * torch.randint(2, total.shape, generator=generator) - 1
        theta = torch.stack([sign * total + difference, sign * total - difference], -1) / 2
        drawn.append(theta[(total >= 0) & (theta.abs() <= 1).all(-1)])
    return torch.cat(drawn)[:count]


def cell(setting: Setting, method: str, seed: int) -> Row:
    """One training, and how far its samples are from exact ones."""
    from sbi.inference import NPE
    from sbi.utils import BoxUniform
    from sbi.utils.metrics import c2st

    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(setting.simulations, 2, generator=generator) - 1
    x = simulate(theta, generator)
    torch.manual_seed(seed)
    started = time.process_time()
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    inference = NPE(prior, density_estimator=estimators()[method], show_progress_bars=False)
    estimator = inference.append_simulations(theta, x).train(max_num_epochs=setting.epochs)
    seconds = time.process_time() - started
    law = inference.build_posterior(estimator)
    accuracies = []
    for observation in map(torch.tensor, OBSERVATIONS):
        samples = law.sample((setting.samples,), x=observation, show_progress_bars=False)
        accuracies.append(float(c2st(samples, posterior(observation, setting.samples, generator), seed=seed)))
    return {
        "method": method,
        "seed": seed,
        "c2st": accuracies,
        "trains": sum(value.numel() for value in estimator.parameters() if value.requires_grad),
        "epochs": inference.summary["epochs_trained"][-1],
        "validation_loss": float(inference.summary["best_validation_loss"][-1]),
        "seconds": seconds,
    }


def kept(path: Path, make: Callable[[], Row]) -> Row:
    """The row in a file, or a new one, which is written there."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def table(rows: Sequence[Row]) -> str:
    """Means over seeds and observations, as Markdown."""
    lines = ["| estimator | trains | C2ST | its range | validation loss | epochs | seconds |", "| --- " * 7 + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        all_c2st = [value for row in own for value in row["c2st"]]
        means = {name: fmean(row[name] for row in own) for name in ("validation_loss", "epochs", "seconds")}
        lines.append(
            f"| {method} | {own[0]['trains']:,} | {fmean(all_c2st):.3f} | {min(all_c2st):.3f} to {max(all_c2st):.3f} "
            f"| {means['validation_loss']:.3f} | {means['epochs']:.0f} | {means['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def work(setting: Setting, seeds: Sequence[int], out: Path, console: Console) -> Results:
    """All cells, each kept when it is done."""
    folder = out / "cells"
    folder.mkdir(exist_ok=True)
    rows = []
    for seed in seeds:
        for index, method in enumerate(estimators()):
            rows.append(kept(folder / f"{index}-{seed}.json", lambda m=method, s=seed: cell(setting, m, s)))  # type: ignore[misc]
            console.print(f"seed {seed}, {method}: C2ST {fmean(rows[-1]['c2st']):.3f}", highlight=False)
    counts = (
        f"{setting.simulations:,} simulations, {setting.samples:,} samples for each of {len(OBSERVATIONS)} observations"
    )
    text = f"{counts}, {len(seeds)} seeds; training is sbi's default.\n\n{table(rows)}"
    return Results({"setting": asdict(setting), "rows": rows}, text, {})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return run_setting(MODULE, __doc__, "runs/two-moons", (Setting(), SHORT), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
