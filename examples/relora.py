"""ReLoRA: a small language model trained through low-rank updates that are merged, against full training and against
LoRA, whose updates are never merged; what to do with the optimizer's memory at a merge; and blocks instead: POET's
rotations from both sides, and relative moves of the square matrices.

    python -m examples.relora --out runs/relora
    python -m examples.relora --tune --out runs/relora-rates     # the rates that RATES holds
    python -m examples.relora --short --out runs/relora-short    # seconds

All variants start from the same network, after the same short training of all its weights, and see the same batches.
Source: Lialin, Shivagunde, Muckatira and Rumshisky (2023), ReLoRA: high-rank training through low-rank updates; Qiu et
al. (2025), Reparameterized LLM Training via Orthogonal Equivalence Transformation (POET).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

import p4torch as p4
from examples.language_model import LanguageModel, Text
from examples.scaffold import Fit, Job, Row, add_options, parser, run, train
from p4torch.merging.optimizer_state import OptimizerState
from p4torch.parametrize.sites import direction_generator
from p4torch.runs.runner import Results
from p4torch.training.steps import warmup_cosine

MODULE = "examples.relora"
LAYERS = ("query", "key", "value", "out", "up", "down")

#: Learning rates tried for every method, and what `--tune` found (seed 100); "poet" and "relative" have it untried.
CANDIDATES = (1e-3, 3e-3, 1e-2)
RATES = {"full": 3e-3, "lora": 3e-3, "relora": 3e-3, "poet": 3e-3, "relative": 3e-3}

#: Blocks of b coordinates and the merge intervals of "poet" and "relative".
BLOCKS = (("poet", 16, 50), ("poet", 32, 200), ("relative", 16, 50), ("relative", 32, 50))


@dataclass(frozen=True)
class Setting:
    """The size of everything. Steps are those after the warm start."""

    width: int = 96
    depth: int = 3
    heads: int = 4
    context: int = 64
    batch: int = 16
    warm: int = 300
    warm_rate: float = 3e-3
    steps: int = 2000
    every: int = 200
    rewarm: int = 20
    rank: int = 4
    windows: int = 300
    record: int = 100


SHORT = Setting(
    width=16, depth=1, heads=2, context=16, batch=4, warm=4, steps=12, every=4, rewarm=2, windows=8, record=4
)


@dataclass(frozen=True)
class Variant:
    """A way to train: "full", "lora" or "relora", with the options of `MergeScheduler`; or with blocks of b coordinates
    that are merged `every` so many steps, "poet", which keeps singular values, or "relative", which multiplies the
    square matrices by any invertible ones and keeps the singular values of the others."""

    method: str
    rate: float
    optimizer_state: str = ""
    rewarm: int = 0
    directions: str = "random"
    block: int = 0
    every: int = 0

    @property
    def title(self) -> str:
        """For people, and for the checkpoint's name."""
        if self.block:
            return f"{self.method}, blocks of {self.block}, N = {self.every}"
        parts = [self.method, self.optimizer_state, f"rewarm {self.rewarm}" if self.rewarm else ""]
        parts.append("informed" if self.directions == "informed" else "")
        return ", ".join(part for part in parts if part)


def variants(setting: Setting) -> list[Variant]:
    """Full training, LoRA, and every option of the optimizer's memory with and without re-warming."""
    relora = partial(Variant, "relora", RATES["relora"])
    grid = [relora(state, rewarm) for state in get_args(OptimizerState) for rewarm in (0, setting.rewarm)]
    informed = relora("transport", 0, "informed")
    blocks = [block_variant(*shape, setting) for shape in BLOCKS]
    return [Variant("full", RATES["full"]), Variant("lora", RATES["lora"]), *grid, informed, *blocks]


def block_variant(method: str, block: int, every: int, setting: Setting, rate: float | None = None) -> Variant:
    """One with blocks, which are smaller in a smaller network."""
    size = min(block, max(2, block * setting.width // Setting().width))
    own = {"block": size, "every": min(every, setting.every)}
    return Variant(method, RATES[method] if rate is None else rate, "reset_directions", **own)  # type: ignore[arg-type]


#: Trained with every seed, as are all with blocks; the other variants with the first one only.
HEADLINE = ("full", "lora", "relora, reset_directions", "relora, transport")


def constrain(layer: nn.Module, variant: Variant, setting: Setting) -> None:
    """Perturb the weight of a linear layer."""
    if not variant.block:
        p4.perturb(layer, "weight", p4.LowRankUpdate, rank=setting.rank, scale=1.0)
        return
    outputs, inputs = layer.weight.shape  # type: ignore[misc]
    general = variant.method == "relative" and outputs == inputs
    kind = p4.Invertible if general else p4.FixedSingularValues
    p4.perturb(layer, "weight", kind, block=variant.block)


class Learner(Fit):
    """One variant while it trains (`examples.scaffold.Training`)."""

    model: LanguageModel

    def __init__(
        self, variant: Variant, setting: Setting, seed: int, text: Text, warm: dict[str, Tensor] | None
    ) -> None:
        super().__init__()
        self.variant, self.setting, self.seed, self.text = variant, setting, seed, text
        torch.manual_seed(seed)
        self.model = LanguageModel(setting.width, setting.depth, setting.heads, setting.context)
        if warm is not None:
            self.model.load_state_dict(warm)
        if variant.method != "full":
            torch.manual_seed(seed + 1)  # the first directions
            for block in self.model.blocks:
                for name in LAYERS:
                    constrain(getattr(block, name), variant, setting)
        self.optimizer = torch.optim.Adam(p4.parameter_groups(self.model), lr=variant.rate, foreach=True)
        if variant.optimizer_state:
            self.scheduler = p4.MergeScheduler(
                self.model,
                self.optimizer,
                every=variant.every or setting.every,
                optimizer_state=variant.optimizer_state,  # type: ignore[arg-type]
                directions=variant.directions,  # type: ignore[arg-type]
                rewarm=variant.rewarm,
                seed=seed,
            )

    @property
    def note(self) -> str:
        return f"held out {self.curve[-1][2]:.3f}" if self.curve else ""

    def advance(self) -> None:
        setting, generator = self.setting, direction_generator(self.seed, "batch", self.step)
        batch = self.text.batch(setting.batch, setting.context, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.variant.rate * warmup_cosine(self.step, setting.steps)
        with self.watch:
            self.optimizer.zero_grad()
            self.model.loss(batch).mean().backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        self.step += 1
        if self.step % setting.record == 0:
            self.curve.append((self.step, self.watch.seconds, float(self.held_out().mean())))

    @torch.no_grad()
    def held_out(self) -> Tensor:
        """Nats a byte of each held-out window."""
        windows = self.text.windows(self.setting.windows, self.setting.context)
        return torch.cat([self.model.loss(part) for part in windows.split(100)]).double()

    def row(self) -> Row:
        loss = self.held_out()
        trainable = sum(value.numel() for value in self.model.parameters() if value.requires_grad)
        return {
            **asdict(self.variant),
            "title": self.variant.title,
            "seed": self.seed,
            "trainable": trainable,
            "adam": sum(
                value.numel() for kept in self.optimizer.state.values() for value in kept.values() if value.dim()
            ),
            "held_out_nats": float(loss.mean()),
            "held_out_error": float(loss.std() / math.sqrt(len(loss))),
            "bits": float(loss.mean()) / math.log(2),
            "step_seconds": self.watch.seconds / self.setting.steps,
            "merged": self.scheduler.merged if self.scheduler else 0,
            "skipped": self.scheduler.skipped if self.scheduler else 0,
            "curve": self.curve,
        }


def warm_start(setting: Setting, seed: int, text: Text) -> dict[str, Tensor]:
    """The weights that all variants of a seed start from: a short training of all of them."""
    brief = Setting(**{**asdict(setting), "steps": setting.warm, "record": setting.warm + 1})
    fit = Learner(Variant("full", setting.warm_rate), brief, seed, text, None)
    while fit.step < setting.warm:
        fit.advance()
    return fit.model.state_dict()


def work(setting: Setting, chosen: Sequence[tuple[Variant, int]], out: Path, console: Console) -> Results:
    """Train what was chosen, pairs of a variant and a seed."""
    text = Text()
    warm = {seed: warm_start(setting, seed, text) for seed in dict.fromkeys(seed for _, seed in chosen)}
    jobs = [
        Job(
            f"{variant.title}, {variant.rate:g}, {seed}".replace(", ", "-").replace(" ", ""),
            f"{variant.title}, rate {variant.rate:g}, seed {seed}",
            setting.steps,
            partial(Learner, variant, setting, seed, text, warm[seed]),
        )
        for variant, seed in chosen
    ]
    rows = list(train(jobs, out, console, setting.record).values())
    described = {"name": text.name, "sha256": text.digest, "train": len(text.train), "held_out": len(text.held_out)}
    return Results({"text": described, "rows": rows}, table(rows, setting, described), {"relora": figure(rows)})


def table(rows: Sequence[Row], setting: Setting, text: dict[str, Any]) -> str:
    """A line a variant and rate: means over seeds, with their standard deviation, or the error over windows of one."""
    lines = [
        f"Text: {text['name']}, {text['train']:,} bytes, {text['held_out']:,} held out (sha256 {text['sha256']}). "
        f"Width {setting.width}, {setting.depth} blocks, context {setting.context}, batch {setting.batch}; "
        f"{setting.warm} steps of all weights, then {setting.steps} steps; rank {setting.rank}, merges every "
        f"{setting.every} steps, unless N says otherwise.",
        "",
        "| variant | learning rate | trains | Adam's memory | held out, nats a byte | bits | ms | merges | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for title, rate in dict.fromkeys((row["title"], row["rate"]) for row in rows):
        same = [row for row in rows if (row["title"], row["rate"]) == (title, rate)]
        loss = torch.tensor([row["held_out_nats"] for row in same], dtype=torch.float64)
        error = f"± {float(loss.std()):.4f}" if len(same) > 1 else f"(± {same[0]['held_out_error']:.4f} over windows)"
        seconds = sorted(row["step_seconds"] for row in same)[len(same) // 2]
        lines.append(
            f"| {title} | {rate:g} | {same[0]['trainable']:,} | {same[0]['adam']:,} | "
            f"{float(loss.mean()):.4f} {error} | {float(loss.mean()) / math.log(2):.3f} | {1000 * seconds:.1f} | "
            f"{same[0]['merged']} | {len(same)} |"
        )
    return "\n".join(lines) + "\n"


def figure(rows: Sequence[Row]) -> Figure:
    """Held-out loss over steps and over seconds, of the first seed."""
    drawn = Figure(figsize=(11, 4), layout="constrained")
    axes = drawn.subplots(1, 2)
    first = rows[0]["seed"]
    for row in rows:
        if row["seed"] == first and row["curve"]:
            steps, seconds, loss = zip(*row["curve"], strict=True)
            style = "k--" if row["directions"] == "informed" else {"full": "k-", "lora": "k:"}.get(row["method"], "-")
            for ax, x in zip(axes, (steps, seconds), strict=True):
                ax.plot(x, loss, style, label=row["title"], linewidth=1)
    axes[0].set(xlabel="step", ylabel="held out, nats a byte")
    axes[1].set(xlabel="CPU seconds of one thread")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    asked = parser(MODULE, __doc__)
    add_options(asked, "runs/relora", "0,1,2")
    asked.add_argument("--tune", action="store_true", help="try learning rates instead: another seed, a third as long")
    options = asked.parse_args(arguments)
    setting = SHORT if options.short else Setting()
    if options.tune:
        setting = Setting(**{**asdict(setting), "steps": max(1, setting.steps // 3 // setting.every) * setting.every})
        methods = (("full", ""), ("lora", ""), ("relora", "reset_directions"))
        tried = [Variant(method, rate, state) for method, state in methods for rate in CANDIDATES]
        tried += [block_variant(*shape, setting, rate) for shape in BLOCKS for rate in CANDIDATES]
        chosen = [(variant, 100) for variant in tried]
    else:
        first, *others = options.seeds
        every = variants(setting)
        chosen = [(variant, first) for variant in every]
        repeated = [variant for variant in every if variant.block or variant.title in HEADLINE]
        chosen += [(variant, seed) for seed in others for variant in repeated]
    fields = {"setting": asdict(setting), "rates": RATES, "seeds": list(options.seeds), "tune": options.tune}
    return run(MODULE, options, fields, partial(work, setting, chosen))


if __name__ == "__main__":
    sys.exit(main())
