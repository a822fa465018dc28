"""ReLoRA: a small language model trained through low-rank updates that are merged, against full training and against
LoRA, whose updates are never merged; and through blocks of all its matrices: relative moves, and POET's rotations, from
both sides, with merges every 5 to 400 steps.

    python -m examples.relora --out runs/relora
    python -m examples.relora --memory --seeds 0 --out runs/relora-memory   # the optimizer's memory at a merge
    python -m examples.relora --tune --out runs/relora-rates                # the rates of `relora_variants.RATES`
    python -m examples.relora --short --out runs/relora-short               # seconds

All variants start from the same network, after the same short training of all its weights, and see the same batches.
Source: Lialin, Shivagunde, Muckatira and Rumshisky (2023), ReLoRA: high-rank training through low-rank updates; Qiu et
al. (2025), Reparameterized LLM Training via Orthogonal Equivalence Transformation (POET).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import p4torch as p4
from examples.language_model import LanguageModel, Text
from examples.relora_report import figure, table
from examples.relora_variants import RATES, SHORT, Setting, Variant, candidates, constrain, memory_options, rounds
from examples.scaffold import Fit, Job, Row, add_options, parser, run, train
from p4torch.parametrize.sites import counter_based_generator
from p4torch.runs.runner import Results
from p4torch.training.steps import warmup_cosine

MODULE = "examples.relora"
TUNE_SEED = 100
LAYERS = ("query", "key", "value", "out", "up", "down")


def memory(entries: Iterable[Any]) -> int:
    """Bytes of the tensors among them."""
    return sum(entry.numel() * entry.element_size() for entry in entries if isinstance(entry, Tensor))


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
        self.size = sum(value.numel() for value in self.model.parameters())
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
        setting, generator = self.setting, counter_based_generator(self.seed, "batch", self.step)
        batch = self.text.batch(setting.batch, setting.context, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.variant.rate * warmup_cosine(self.step, setting.steps)
        self.update(lambda: self.model.loss(batch).mean())
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
        kept = [entry for entries in self.optimizer.state.values() for entry in entries.values()]
        perturbations = [site.perturbation for site in p4.sites(self.model)]
        frozen = [value for part in perturbations for value in part.parameters() if not value.requires_grad]
        beside = [*frozen, *(value for part in perturbations for value in part.buffers())]
        return {
            **asdict(self.variant),
            "title": self.variant.title,
            "seed": self.seed,
            "trainable": trainable,
            "parameters": self.size,
            "optimizer_bytes": memory(kept),
            "beside_bytes": memory(beside),
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
    brief = replace(setting, steps=setting.warm, record=setting.warm + 1)
    fit = Learner(Variant("full", setting.warm_rate), brief, seed, text, None)
    while fit.step < setting.warm:
        fit.advance()
    return fit.model.state_dict()


def work(setting: Setting, rounds: Sequence[Sequence[tuple[Variant, int]]], out: Path, console: Console) -> Results:
    """Train pairs of a variant and a seed, one round after the other."""
    text, rows = Text(), list[Row]()
    warm = cache(partial(warm_start, setting, text=text))
    for pairs in rounds:
        jobs = [
            Job(
                f"{variant.title}, {variant.rate:g}, {seed}".replace(", ", "-").replace(" ", ""),
                f"{variant.title}, rate {variant.rate:g}, seed {seed}",
                setting.steps,
                partial(Learner, variant, setting, seed, text, warm(seed)),
            )
            for variant, seed in pairs
        ]
        rows += train(jobs, out, console, setting.record).values()
    described = {"name": text.name, "sha256": text.digest, "train": len(text.train), "held_out": len(text.held_out)}
    return Results({"text": described, "rows": rows}, table(rows, setting, described), {"relora": figure(rows)})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    command_line = parser(MODULE, __doc__)
    add_options(command_line, "runs/relora", "0,1,2")
    command_line.add_argument(
        "--tune", action="store_true", help="try learning rates instead: another seed, a third as long"
    )
    command_line.add_argument("--memory", action="store_true", help="all options of the optimizer's memory instead")
    options = command_line.parse_args(arguments)
    setting = SHORT if options.short else Setting()
    if options.tune:
        setting = replace(setting, steps=max(1, setting.steps // 3 // setting.every) * setting.every)
        parts = [[(variant, TUNE_SEED) for variant in candidates(setting)]]
    elif options.memory:
        parts = [[(variant, seed) for variant in memory_options(setting)] for seed in options.seeds]
    else:
        parts = rounds(setting, options.seeds)
    fields = {"setting": asdict(setting), "rates": RATES, "seeds": list(options.seeds), "tune": options.tune}
    fields["memory"] = options.memory
    return run(MODULE, options, fields, partial(work, setting, parts))


if __name__ == "__main__":
    sys.exit(main())
