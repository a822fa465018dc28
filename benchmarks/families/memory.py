"""Memory: the peak of live bytes in a training step with Adam, and in a merge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import p4torch as p4
from benchmarks import layers
from benchmarks.counting import Ledger, count, tensors_of
from benchmarks.families.linear import PROPERTIES
from benchmarks.measure import Effort
from benchmarks.rows import Job, Row, gathered

FEATURES = 2048
METHOD = "peak of live bytes: parameters, gradients, optimizer state, saved and temporary tensors"


def jobs() -> list[Job]:
    """A job for each property."""
    return [Job("memory", f"{property}-{FEATURES}", partial(_rows, property), cost=4) for property in PROPERTIES]


def adam_peak(outputs: layers.Outputs, module: nn.Module, features: int) -> int:
    """Peak bytes of forward, log|det|, backward and Adam's step."""
    optimizer = torch.optim.Adam([value for value in module.parameters() if value.requires_grad], lr=1e-6)
    step = layers.training_step(outputs, module, features)

    def whole() -> None:
        step()
        optimizer.step()

    return count(whole, tensors_of(module)).peak


def perturbed_peak(property: str, features: int, rank: int) -> int:
    """The same for a perturbed layer."""
    layer = layers.perturbed(property, features, rank)
    return adam_peak(layers.forward_of(layer, property), layer, features)


def plain_peak(features: int) -> int:
    """The same for `nn.Linear`."""
    layer = layers.plain(features)
    return adam_peak(layer, layer, features)


def merge_ledger(property: str, features: int, rank: int) -> Ledger:
    """A merge, counted."""
    layer = layers.perturbed(property, features, rank)
    site = next(p4.sites(layer))

    def merge() -> None:
        layers.nudge(layer)
        site.merge()

    return count(merge, tensors_of(layer))


def _rows(property: str, effort: Effort) -> list[Row]:
    plain = plain_peak(FEATURES)
    kinds: list[tuple[str, Callable[[], int], str | None]] = [
        (f"{property}, training step, rank {rank}", partial(perturbed_peak, property, FEATURES, rank), "memory")
        for rank in (1, 4)
    ]
    kinds.append((f"{property}, merge, rank 1", lambda: merge_ledger(property, FEATURES, 1).peak, None))
    return [_row(name, peak, plain, bar) for name, peak, bar in kinds]


def _row(name: str, peak: Callable[[], int], plain: int, bar: str | None) -> Row:
    name, sides = f"memory, n = {FEATURES}, {name}", "p4torch / training step of nn.Linear"
    bytes_, reason, failed = gathered("p4torch", peak)
    if bytes_ is None:
        return Row(name, sides, bar=bar, reason=reason, failed=failed)
    facts = {"method": METHOD, "bytes": {"p4torch": bytes_, "nn.Linear": plain}, "batch": layers.BATCH}
    return Row(name, sides, bytes_ / plain, None, bar, facts=facts)
