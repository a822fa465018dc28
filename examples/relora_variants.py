"""What `examples.relora` compares: sizes, variants, and their rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from torch import nn

import p4torch as p4
from p4torch.merging.optimizer_state import OptimizerState
from p4torch.parametrize.views import View, regrouped

#: Learning rates that `--tune` tries, and those chosen; of the blocks after some of its runs only.
CANDIDATES, BLOCK_CANDIDATES = (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 1.7e-2, 3e-2)
RATES = {"full": 3e-3, "lora": 3e-3, "relora": 3e-3, "relative": 1e-2, "poet": 3e-2}

#: Methods with blocks, their size and merge interval, and the other intervals of the first of them.
BLOCKS = (("relative", 12, 200), ("poet", 16, 50))
INTERVALS = (5, 20, 50, 100, 400)


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
    that are merged `every` so many steps: "poet", which keeps singular values, or "relative", which multiplies
    matrices by invertible ones."""

    method: str
    rate: float
    optimizer_state: str = ""
    rewarm: int = 0
    directions: str = "random"
    block: int = 0
    every: int = 0
    study: bool = False

    @property
    def title(self) -> str:
        """For people, and for the checkpoint's name."""
        parts = [self.method, f"blocks of {self.block}, N = {self.every}" if self.block else self.optimizer_state]
        parts.append(f"rewarm {self.rewarm}" if self.rewarm else "")
        parts.append("gradient" if self.directions == "gradient" else "")
        return ", ".join(part for part in parts if part)


def squares(weight: Any) -> View | None:
    """The view of a weight `(kn, n)` or `(n, kn)` as k square matrices; None for a square one."""
    outputs, inputs = weight.shape
    n, k = min(outputs, inputs), max(outputs, inputs) // min(outputs, inputs)
    if k == 1:
        return None
    split, order = ((k, n, n), (0, 1, 2)) if outputs > inputs else ((n, k, n), (1, 0, 2))
    return regrouped(split, order, (k, n, n), (outputs, inputs))


def constrain(layer: nn.Module, variant: Variant, setting: Setting) -> None:
    """Perturb the weight of a linear layer."""
    if variant.method == "poet":
        p4.perturb(layer, "weight", p4.FixedSingularValues, block=variant.block)
    elif variant.method == "relative":
        p4.perturb(layer, "weight", p4.Invertible, view=squares(layer.weight), block=variant.block, side="both")
    else:
        p4.perturb(layer, "weight", p4.LowRankUpdate, rank=setting.rank, scale=1.0)


def block_variant(method: str, block: int, every: int, setting: Setting, rate: float | None = None) -> Variant:
    """One with blocks, which are smaller in a smaller network."""
    size = min(block, max(2, block * setting.width // Setting().width))
    chosen = RATES[method] if rate is None else rate
    return Variant(method, chosen, "reset_directions", block=size, every=min(every, setting.steps // 2))


def variants(setting: Setting) -> list[Variant]:
    """Full training, LoRA, ReLoRA, and blocks."""
    full, lora = Variant("full", RATES["full"]), Variant("lora", RATES["lora"])
    relora = Variant("relora", RATES["relora"], "reset_directions")
    return [full, lora, relora, *(block_variant(*shape, setting) for shape in BLOCKS)]


def memory_options(setting: Setting) -> list[Variant]:
    """ReLoRA with every option of the optimizer's memory, with and without re-warming, and gradient directions."""
    relora = partial(Variant, "relora", RATES["relora"])
    grid = [relora(state, rewarm) for state in get_args(OptimizerState) for rewarm in (0, setting.rewarm)]
    return [*grid, relora("transport", 0, "gradient")]


def intervals(setting: Setting) -> list[Variant]:
    """The first one with blocks at the other intervals."""
    method, block, default = BLOCKS[0]
    tried = [block_variant(method, block, every, setting) for every in (default, *INTERVALS)]
    return [replace(variant, study=True) for variant in list(dict.fromkeys(tried))[1:]]


def candidates(setting: Setting) -> list[Variant]:
    """Every method and shape at every rate that is tried for it."""
    methods = (("full", ""), ("lora", ""), ("relora", "reset_directions"))
    plain = [Variant(method, rate, state) for method, state in methods for rate in CANDIDATES]
    return plain + [block_variant(*shape, setting, rate) for shape in BLOCKS for rate in BLOCK_CANDIDATES]


def rounds(setting: Setting, seeds: Sequence[int]) -> list[list[tuple[Variant, int]]]:
    """Pairs of a variant and a seed, in rounds that train one after the other: the main comparison with one seed after
    the other; then, with the first one, the other shapes of blocks and the other intervals."""
    every = variants(setting)
    main, other = every[: len(every) - len(BLOCKS) + 1], every[len(every) - len(BLOCKS) + 1 :]
    last = [(variant, seeds[0]) for variant in (*other, *intervals(setting))]
    return [*([(variant, seed) for variant in main] for seed in seeds), last]
