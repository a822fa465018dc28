"""Lattice field theory in two dimensions, twice.

    python -m examples.lattice --out runs/lattice
    python -m examples.lattice --short --out runs/lattice-short    # seconds

A flow of the scalar field φ⁴ on a periodic lattice of 8 x 8 sites, trained on its own samples (reverse KL):

    S(φ) = Σ_x [ Σ_μ φ(x) (2 φ(x) - φ(x+μ) - φ(x-μ)) + m² φ(x)² + λ φ(x)⁴ ],   m² = -4, λ = 8

"couplings" are affine couplings on a checkerboard, whose networks see 12 sites around, and an odd map of each site
that bends Gaussian tails to those of φ⁴; "mixing" are the same with linear layers between them that commute with
shifts, turns and reflections of the lattice, kept so by `p4torch.LinearSubspace`: 15 numbers each. The effective sample
size (ESS) is that of importance weights exp(-S)/q. Both must agree on log Z.

And the gauge field of SU(2), of which `examples.lattice_gauge` fixes the gauge, with one element of SU(2) a site.

Source: Albergo, Kanwar and Shanahan (2019), for flows of φ⁴; Albergo et al. (2021), arXiv:2101.08176, for m² and λ.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

import p4torch as p4
from examples.lattice_gauge import Gauge, gauge_row, gauge_table
from examples.scaffold import Fit, Job, Row, run_setting, train
from p4torch.flows import Chain, Flow, Inverse, InvertibleLinear, StandardNormal
from p4torch.flows.bijection import Bijection
from p4torch.parametrize.sites import counter_based_generator
from p4torch.representations import Representation, permutations
from p4torch.runs.runner import Results
from p4torch.training.steps import warmup_cosine

MODULE = "examples.lattice"

#: What trains, and its colour.
KINDS = {"couplings": "C1", "mixing": "C0"}


@dataclass(frozen=True)
class Setting:
    """The size of everything."""

    size: int = 8
    mass: float = -4.0
    coupling: float = 8.0
    layers: int = 6
    hidden: int = 16
    mix_every: int = 2
    every: int = 50
    batch: int = 64
    steps: int = 1500
    rate: float = 5e-3
    record: int = 75
    samples: int = 2**15
    gauge: Gauge = field(default_factory=Gauge)


SHORT = Setting(size=4, layers=2, hidden=2, batch=8, steps=6, every=3, record=3, samples=64, gauge=Gauge.short())


def action(phi: Tensor, setting: Setting) -> Tensor:
    """S of fields `(..., L²)`, `(...)`."""
    field = phi.unflatten(-1, (setting.size, setting.size))
    local = setting.mass * field**2 + setting.coupling * field**4
    kinetic = sum(field * (2 * field - field.roll(1, axis) - field.roll(-1, axis)) for axis in (-1, -2))
    return (local + kinetic).sum((-2, -1))


def symmetries(size: int) -> Representation:
    """Shifts, a quarter turn and a reflection of a periodic square lattice, as permutations of its sites."""
    sites = torch.arange(size**2).reshape(size, size)
    moved = [sites.roll(1, 0), sites.roll(1, 1), sites.rot90(), sites.flip(0)]
    return permutations(torch.stack([one.flatten() for one in moved]))


class Checkerboard(Bijection):
    """z = (x - t) exp(-s) on the sites of one colour; s and t are a network of the 12 nearest ones of the other."""

    active: Tensor
    neighbours: Tensor

    def __init__(self, size: int, hidden: int, colour: int) -> None:
        super().__init__()
        sites = torch.arange(size)
        row, column = ((sites[:, None] + sites) % 2 == colour).nonzero().unbind(-1)
        steps = torch.tensor([(a, b) for a in range(-2, 3) for b in range(-2, 3) if (a + b) % 2])
        rows, columns = (row[:, None] + steps[:, 0]) % size, (column[:, None] + steps[:, 1]) % size
        self.register_buffer("active", row * size + column)
        self.register_buffer("neighbours", rows * size + columns)
        last = nn.Linear(hidden, 2)
        nn.init.zeros_(last.weight)
        self.network = nn.Sequential(
            nn.Linear(len(steps), hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), last
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._parts(x)
        moved = (x.index_select(-1, self.active) - t) * (-s).exp()
        return x.index_copy(-1, self.active, moved), -s.sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._parts(z)
        moved = z.index_select(-1, self.active) * s.exp() + t
        return z.index_copy(-1, self.active, moved), s.sum(-1)

    def _parts(self, field: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.network(field[..., self.neighbours]).unbind(-1)
        return torch.tanh(s), t


class Compression(Bijection):
    """x = c y (1 + b² y²)^(-1/4) for each site alike, from latent y to data x: tails of |x|⁴, not of |y|²."""

    def __init__(self) -> None:
        super().__init__()
        self.log_b, self.log_c = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fourth = (x * (-self.log_c).exp()) ** 4  # u² = fourth (1 + b² u) for u = y²
        half = fourth * (2 * self.log_b).exp() / 2
        y = x.sign() * (half + (half**2 + fourth).sqrt()).sqrt()
        return y, -self._log_slope(y).sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        scaled = 1 + (2 * self.log_b).exp() * z**2
        return self.log_c.exp() * z * scaled**-0.25, self._log_slope(z).sum(-1)

    def _log_slope(self, y: Tensor) -> Tensor:
        square = (2 * self.log_b).exp() * y**2
        return self.log_c + (square / 2).log1p() - 1.25 * square.log1p()


def flow(kind: str, setting: Setting) -> Flow:
    """From fields to white noise."""
    features, layers = setting.size**2, list[Bijection]()
    for index in range(setting.layers):
        if kind == "mixing" and index % setting.mix_every == 0:
            mixing = InvertibleLinear(
                features, bias=False, property=p4.LinearSubspace, representation=symmetries(setting.size)
            )
            layers.append(Inverse(mixing))  # samples are products, then
        layers.append(Checkerboard(setting.size, setting.hidden, index % 2))
        if index % 2:
            layers.append(Compression())
    return Flow(Chain(layers[::-1]), StandardNormal(features))


class Learner(Fit):
    """One flow while it trains (`examples.scaffold.Training`). Its curve holds (step, seconds, ESS of the batches)."""

    def __init__(self, kind: str, setting: Setting, seed: int) -> None:
        super().__init__()
        self.kind, self.setting, self.seed = kind, setting, seed
        torch.manual_seed(seed)
        self.model: Flow = flow(kind, setting)
        self.optimizer = torch.optim.Adam(p4.parameter_groups(self.model), lr=setting.rate, foreach=True)
        self.recent: list[Tensor] = []
        if kind == "mixing":
            self.scheduler = p4.MergeScheduler(self.model, self.optimizer, every=setting.every, seed=seed)

    @property
    def note(self) -> str:
        return f"ESS {self.curve[-1][2]:.1%}" if self.curve else ""

    def advance(self) -> None:
        setting = self.setting
        for group in self.optimizer.param_groups:
            group["lr"] = setting.rate * warmup_cosine(self.step, setting.steps)
        generator = counter_based_generator(self.seed, "batch", self.step)
        logarithms: list[Tensor] = []

        def loss() -> Tensor:
            logarithms.append(self.log_weights(setting.batch, generator))
            return -logarithms[0].mean()

        self.update(loss)
        self.recent.append(logarithms[0].detach())
        if self.step % setting.record == 0:
            self.curve.append((self.step, self.watch.seconds, effective_share(torch.cat(self.recent))))
            self.recent.clear()

    def log_weights(self, count: int, generator: torch.Generator) -> Tensor:
        """-S(φ) - log q(φ) of samples, `(count,)`."""
        phi, log_q = self.model.sample_with_log_prob(count, generator=generator)
        return -action(phi, self.setting) - log_q

    @torch.no_grad()
    def row(self) -> Row:
        """The ESS of fresh samples."""
        setting, generator = self.setting, counter_based_generator(self.seed, "test", 0)
        parts = [self.log_weights(512, generator) for _ in range(max(1, setting.samples // 512))]
        logarithms = torch.cat(parts).double()
        return {
            "kind": self.kind,
            "seed": self.seed,
            "steps": setting.steps,
            "seconds": self.watch.seconds,
            "parameters": sum(value.numel() for value in self.model.parameters() if value.requires_grad),
            "ess": effective_share(logarithms),
            "kl": float(logarithms.logsumexp(0) - math.log(len(logarithms)) - logarithms.mean()),
            "log_z": float(logarithms.logsumexp(0)) - math.log(len(logarithms)),
            "defect": max((float(site.perturbation.defect(site.base)) for site in p4.sites(self.model)), default=0.0),
            "merged": self.scheduler.merged if self.scheduler else 0,
            "curve": self.curve,
        }


def effective_share(logarithms: Tensor) -> float:
    """(Σw)² / (N Σw²)."""
    log_share = 2 * logarithms.logsumexp(0) - (2 * logarithms).logsumexp(0)
    return float(log_share.exp()) / len(logarithms)


def work(setting: Setting, seeds: Sequence[int], out: Path, console: Console) -> Results:
    """Fix the gauge and train every flow with every seed."""
    gauge = [gauge_row(setting.gauge, seed) for seed in seeds]
    jobs = [
        Job(f"{kind}-{seed}", f"{kind}, seed {seed}", setting.steps, partial(Learner, kind, setting, seed))
        for seed in seeds
        for kind in KINDS
    ]
    rows = list(train(jobs, out, console, setting.record).values())
    metrics = {"setting": asdict(setting), "rows": rows, "gauge": gauge}
    return Results(metrics, f"{table(rows, setting)}\n{gauge_table(gauge, setting.gauge)}", {"lattice": figure(rows)})


def table(rows: Sequence[Row], setting: Setting) -> str:
    """A line a flow and seed."""
    lines = [
        f"φ⁴ on {setting.size} x {setting.size} sites, m² = {setting.mass:g}, λ = {setting.coupling:g}: "
        f"{setting.layers} couplings, {setting.batch} samples a step, ESS of {setting.samples} samples.",
        "",
        "| flow | seed | trains | steps | ESS | log Z | defect of the mixing layers | merges | ms a step | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: list(KINDS).index(row["kind"])):
        defect = f"{row['defect']:.1g}" if row["merged"] else ""
        cells = [row["kind"], row["seed"], row["parameters"], row["steps"], f"{row['ess']:.1%}", f"{row['log_z']:.3f}"]
        cells += [defect, row["merged"] or "", f"{1000 * row['seconds'] / row['steps']:.1f}", f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def figure(rows: Sequence[Row]) -> Figure:
    """ESS of the batches against CPU seconds."""
    result = Figure(figsize=(6, 4), layout="constrained")
    axes = result.subplots()
    for row in rows:
        _, seconds, share = zip(*row["curve"], strict=True)
        label = row["kind"] if row["seed"] == rows[0]["seed"] else None
        axes.plot(seconds, share, color=KINDS[row["kind"]], label=label)
    axes.set(xlabel="CPU seconds", ylabel="effective sample size of training batches")
    axes.legend()
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    return run_setting(MODULE, __doc__, "runs/lattice", (Setting(), SHORT), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
