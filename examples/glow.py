"""Glow on scikit-learn's digits, 8 x 8 pixels of 17 levels: bits per dimension with P4's 1 x 1 convolutions, with ones
by LU in the same flow, and of normflows' Glow with as many parameters.

    python -m examples.glow --out runs/glow
    python -m examples.glow --short --out runs/glow-short    # seconds

Pixels v = 0, ..., 16 are dequantised to x = (v + u) / 17, u uniform in [0, 1); bits per dimension are those of v, at
most: -log2 p(x) / 64 + log2 17. All flows see the same batches with the same noise and use Adam at one rate. A third of
the images is held out; 200 others choose the step that counts for each run, that of the least validation loss.

Source: Kingma and Dhariwal (2018), Glow: generative flow with invertible 1 x 1 convolutions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmarks.peers import load
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

import p4torch as p4
from examples.recurrent_tasks import digits
from examples.scaffold import Fit, Job, Row, peer, run_setting, train
from p4torch.flows import Bijection, Chain, Glow, InvertibleConv1x1, fit_actnorm
from p4torch.flows.images import check_image, pixels
from p4torch.parametrize.sites import counter_based_generator
from p4torch.runs.runner import Results

MODULE = "examples.glow"

SIZE, LEVELS = 8, 17
P4, LU, PEER = "P4", "LU", "normflows"
COLOURS = {P4: "C0", LU: "C1", PEER: "C2"}
#: Images for validation, from the end of the training ones; dequantisations over which held-out results are averaged.
VALIDATION, DRAWS = 200, 2


@dataclass(frozen=True)
class Setting:
    """The size of everything."""

    levels: int = 2
    depth: int = 4
    hidden: int = 24
    steps: int = 800
    batch: int = 32
    rate: float = 1e-3
    every: int = 50
    record: int = 100
    samples: int = 24


SHORT = Setting(depth=1, hidden=4, steps=6, batch=8, every=2, record=3, samples=4)


# --- data -------------------------------------------------------------------------------------------------------------


@lru_cache
def images() -> tuple[Tensor, Tensor, Tensor]:
    """Levels 0, ..., 16 `(m, 1, 8, 8)`: to train on, for validation, held out."""
    (train_x, _), (test_x, _) = digits()
    known, held_out = ((x.mT * (LEVELS - 1)).round().reshape(-1, 1, SIZE, SIZE) for x in (train_x, test_x))
    return known[:-VALIDATION], known[-VALIDATION:], held_out


def dequantised(v: Tensor, generator: torch.Generator) -> Tensor:
    """x = (v + u) / 17."""
    return (v + torch.rand(v.shape, generator=generator)) / LEVELS


def batch_of(setting: Setting, seed: int, step: int) -> Tensor:
    generator = counter_based_generator(seed, "batch", step)
    known = images()[0]
    return dequantised(known[torch.randint(len(known), (setting.batch,), generator=generator)], generator)


def bits(log_prob: Tensor) -> Tensor:
    """Per dimension, of densities `(...)` of x in nats."""
    return -log_prob / (SIZE * SIZE * math.log(2)) + math.log2(LEVELS)


# --- flows ------------------------------------------------------------------------------------------------------------


class LUConv1x1(Bijection):
    """The usual 1 x 1 convolution: W = P L (U + diag(±e^s)), with P and the signs fixed. L and U are the parts of one
    matrix below and above the diagonal, s the diagonal itself."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        p, lower, upper = torch.linalg.lu(weight)
        self.register_buffer("p", p)
        self.register_buffer("sign", upper.diagonal().sign())
        self.packed = nn.Parameter(lower.tril(-1) + upper.triu(1) + upper.diagonal().abs().log().diag())

    p: Tensor
    sign: Tensor

    def factors(self) -> tuple[Tensor, Tensor]:
        lower = self.packed.tril(-1) + torch.eye(len(self.sign))
        return lower, self.packed.triu(1) + (self.sign * self.packed.diagonal().exp()).diag()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_image(x, len(self.sign))
        lower, upper = self.factors()
        z = (x.movedim(-3, -1) @ (self.p @ lower @ upper).mT).movedim(-1, -3)
        return z, pixels(x) * self.packed.trace()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_image(z, len(self.sign), name="z")
        lower, upper = self.factors()
        columns = self.p.mT @ z.flatten(-2)
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, columns, upper=True).unflatten(-1, z.shape[-2:])
        return x, -pixels(z) * self.packed.trace()


def with_p4(setting: Setting) -> Glow:
    return Glow(1, SIZE, SIZE, setting.levels, setting.depth, setting.hidden)


def with_lu(setting: Setting) -> Glow:
    """The same flow, started from the same matrices."""
    flow = with_p4(setting)
    for chain in [module for module in flow.modules() if isinstance(module, Chain)]:
        for index, layer in enumerate(chain.bijections):
            if isinstance(layer, InvertibleConv1x1):
                chain.bijections[index] = LUConv1x1(layer.linear.weight.detach())
    return flow


def with_normflows(setting: Setting, hidden: int | None = None) -> nn.Module:
    """normflows' Glow as its documentation builds it, just wide enough to have as many parameters as P4's."""
    if hidden is None:
        wanted, hidden = count(with_p4(setting)), 1
        while count(with_normflows(setting, hidden)) < wanted:
            hidden += 1
    flows, distributions = load("normflows.flows"), load("normflows.distributions")
    bases, levels, merges = [], [], []
    for level in range(setting.levels):
        channels, size = 2 ** (setting.levels + 1 - level), SIZE >> (setting.levels - level)
        blocks = [flows.GlowBlock(channels, hidden, split_mode="channel", scale=True) for _ in range(setting.depth)]
        levels.append([*blocks, flows.Squeeze()])
        shape = (channels if level == 0 else channels // 2, size, size)
        if level:
            merges.append(flows.Merge())
        bases.append(distributions.DiagGaussian(shape))
    made: nn.Module = load("normflows").MultiscaleFlow(bases, levels, merges, class_cond=False)
    return made


MODELS: dict[str, Callable[[Setting], nn.Module]] = {P4: with_p4, LU: with_lu, PEER: with_normflows}


def count(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


# --- training ---------------------------------------------------------------------------------------------------------


class Trained(Fit):
    """One flow. `curve` holds (step, seconds, bits for validation, bits held out)."""

    def __init__(self, kind: str, setting: Setting, seed: int) -> None:
        super().__init__()
        self.kind, self.setting, self.seed = kind, setting, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = MODELS[kind](setting)
        first = batch_of(setting, seed, 0)
        if kind == PEER:
            self.log_prob(first)  # its ActNorms are fitted by the first batch, too
        else:
            fit_actnorm(self.model, first)
        self.optimizer = torch.optim.Adam(p4.parameter_groups(self.model), lr=setting.rate)
        if kind == P4:
            self.scheduler = p4.MergeScheduler(self.model, self.optimizer, every=setting.every, seed=seed)

    def log_prob(self, x: Tensor) -> Tensor:
        result: Tensor = self.model.log_prob(x, *((None,) if self.kind == PEER else ()))  # type: ignore[operator]
        return result

    @property
    def note(self) -> str:
        return f"{self.curve[-1][2]:.3f} bits" if self.curve else ""

    def advance(self) -> None:
        x = batch_of(self.setting, self.seed, self.step)
        self.update(lambda: -self.log_prob(x).mean())
        if self.step % self.setting.record == 0:
            self.curve.append((self.step, self.watch.seconds, *(self.bits(v, name) for v, name in self.held_out())))

    def held_out(self) -> list[tuple[Tensor, str]]:
        return list(zip(images()[1:], ("validation", "held out"), strict=True))

    @torch.no_grad()
    def bits(self, v: Tensor, name: str) -> float:
        generators = [counter_based_generator(0, name, draw) for draw in range(DRAWS)]
        return mean(float(bits(self.log_prob(dequantised(v, generator))).mean()) for generator in generators)

    @torch.no_grad()
    def row(self) -> Row:
        step, _, validation, held_out = min(self.curve, key=lambda point: point[2])
        return {
            "kind": self.kind,
            "seed": self.seed,
            "parameters": count(self.model),
            "steps": self.step,
            "seconds": self.watch.seconds,
            "best_step": step,
            "validation_bits": validation,
            "bits": held_out,
            "last_bits": self.curve[-1][3],
            "merged": self.scheduler.merged if self.scheduler else None,
            "skipped": self.scheduler.skipped if self.scheduler else None,
            "samples": self.samples(),
            "curve": self.curve,
        }

    def samples(self) -> list[Any]:
        """Levels of samples of the flow as it is at the end."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            drawn = self.model.sample(self.setting.samples)  # type: ignore[operator]
        x = drawn[0] if isinstance(drawn, tuple) else drawn
        levels: list[Any] = (x * LEVELS).floor().clamp(0, LEVELS - 1).int().flatten(1).tolist()
        return levels


# --- results ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], setting: Setting) -> str:
    """A line a flow: means over seeds, and the range."""
    seeds = dict.fromkeys(str(row["seed"]) for row in rows)
    lines = [
        f"{setting.steps} steps of {setting.batch} images, Adam at {setting.rate:g}, seeds {', '.join(seeds)}. Bits "
        "per dimension of held-out images where the validation loss was least: mean (range).",
        "",
        "| 1 x 1 convolutions | parameters | bits per dimension | validation | step | merges | skipped | ms a step |",
        "| --- " * 8 + "|",
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        same = [row for row in rows if row["kind"] == kind]
        bits_of, merged = [row["bits"] for row in same], [row["merged"] for row in same]
        steps = ", ".join(str(row["best_step"]) for row in same)
        merges = ("-", "-") if None in merged else (str(sum(merged)), str(sum(row["skipped"] for row in same)))
        lines.append(
            f"| {kind} | {same[0]['parameters']} | {mean(bits_of):.3f} ({min(bits_of):.3f} to {max(bits_of):.3f}) | "
            f"{mean(row['validation_bits'] for row in same):.3f} | {steps} | {merges[0]} | {merges[1]} | "
            f"{1e3 * mean(row['seconds'] / row['steps'] for row in same):.2f} |"
        )
    return "\n".join(lines) + "\n"


def figure(rows: Sequence[Row]) -> Figure:
    """Samples of each flow beside images of the data, and the curves."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    first = [next(row for row in rows if row["kind"] == kind) for kind in kinds]
    shown = {"data": images()[2][: len(first[0]["samples"])], **{row["kind"]: row["samples"] for row in first}}
    drawn = Figure(figsize=(9, 1.3 * len(shown) + 2.4), layout="constrained")
    axes = drawn.subplots(len(shown) + 1, 1, height_ratios=[1.0] * len(shown) + [3.0])
    for axis, (name, levels) in zip(axes, shown.items(), strict=False):
        pictures = torch.as_tensor(levels).reshape(-1, SIZE, SIZE)
        half = -(-len(pictures) // 2)
        strips = [torch.cat(list(part), 1) for part in (pictures[:half], pictures[half:])]
        axis.imshow(torch.cat([strip for strip in strips if strip.shape == strips[0].shape], 0), cmap="gray_r")
        axis.set(ylabel=name, xticks=[], yticks=[])
    for row in rows:
        label = row["kind"] if row["seed"] == rows[0]["seed"] else None
        steps, _, _, held_out = zip(*row["curve"], strict=True)
        axes[-1].plot(steps, held_out, COLOURS[row["kind"]], label=label, linewidth=1)
    best = min(row["bits"] for row in rows)
    axes[-1].set(xlabel="step", ylabel="bits per dimension, held out", ylim=(best - 0.05, best + 0.8))
    axes[-1].legend()
    return drawn


def work(setting: Setting, seeds: Sequence[int], out: Path, console: Console) -> Results:
    """Train everything with every seed."""
    kinds = [kind for kind in MODELS if kind != PEER or peer("normflows", console) is not None]
    jobs = [
        Job(f"{kind}-{seed}", f"{kind}, seed {seed}", setting.steps, partial(Trained, kind, setting, seed))
        for seed in seeds
        for kind in kinds
    ]
    rows = list(train(jobs, out, console, setting.record).values())
    return Results({"setting": asdict(setting), "rows": rows}, table(rows, setting), {"glow": figure(rows)})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return run_setting(MODULE, __doc__, "runs/glow", (Setting(), SHORT), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
