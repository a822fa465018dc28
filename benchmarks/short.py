"""The short form: counts of operations and of bytes, and a few ratios of medians, against recorded ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks import layers
from benchmarks.counting import count, tensors_of
from benchmarks.families import flows, linear, memory
from benchmarks.measure import Effort, ratio_of
from benchmarks.rows import Job, Row, compare, gathered
from p4torch.errors import CheckpointError
from p4torch.flows import Chain, Flow, InvertibleMLP, StandardNormal
from p4torch.runs.folder import read_json, write_json
from p4torch.runs.provenance import cores

#: How many times worse than recorded is a failure.
TOLERANCE = 1.5

#: Rank of the layers that are counted.
RANK = 2
EFFORT = Effort(rounds=15, seconds=4.0)

Values = dict[str, float]


def jobs() -> list[Job]:
    """Counted first, then timed. Every value is better when it is smaller."""
    counted: list[tuple[str, Callable[[], Values]]] = [
        (f"{property} {features}", partial(_layer, property, features))
        for features in (64, 128)
        for property in linear.PROPERTIES
    ]
    counted += [
        *((f"Invertible solve {features}", partial(_solve, features)) for features in (64, 128)),
        *((f"merge {property} 128", partial(_merge, property)) for property in linear.PROPERTIES),
        ("deep chain", lambda: _flow(Flow(InvertibleMLP(2, flows.DEPTH, rank=1), StandardNormal(2)), 2)),
        ("realnvp with Swap", lambda: _couplings(flows.swap)),
        ("realnvp with InvertibleLinear", lambda: _couplings(flows.linear)),
    ]
    timed: list[tuple[str, Callable[[], Values]]] = [
        *((f"time {property} 512", partial(_against_linear, property)) for property in ("Orthogonal", "Invertible")),
        ("time deep chain", _deep_chain),
    ]
    return [Job("short", name, partial(_rows, name, values), cost) for group, cost in ((counted, 0.5), (timed, 4.0))
            for name, values in group]  # fmt: skip


def _rows(name: str, measure: Callable[[], Values], effort: Effort) -> list[Row]:
    values, reason, failed = gathered("p4torch", measure)
    if values is None:
        return [Row(name, "", reason=reason, failed=failed)]
    return [Row(f"{name}: {key}", "", ratio=value) for key, value in values.items()]


# --- what is measured -----------------------------------------------------------------------------------------


def _counted(step: Callable[[], object], module: nn.Module) -> Values:
    ledger = count(step, tensors_of(module))
    return {"kernels": ledger.kernels, "bytes": ledger.peak}


def _layer(property: str, features: int) -> Values:
    layer = layers.perturbed(property, features, RANK)
    return _counted(layers.training_step(layers.forward_of(layer, property), layer, features), layer)


def _solve(features: int) -> Values:
    layer = layers.perturbed("Invertible", features, RANK)
    return _counted(layers.training_step(layers.inverse_of(layer), layer, features), layer)


def _merge(property: str) -> Values:
    ledger = memory.merge_ledger(property, 128, RANK)
    return {"kernels": ledger.kernels, "bytes": ledger.peak}


def _flow(flow: nn.Module, features: int) -> Values:
    return _counted(flows.fit_step(flow, features).call, flow)


def _couplings(mixing: Callable[[], Any]) -> Values:
    parts = [part for _ in range(flows.COUPLINGS) for part in (flows.ours(), mixing())]
    return _flow(Flow(Chain(parts), StandardNormal(flows.FEATURES)), flows.FEATURES)


def _against_linear(property: str) -> Values:
    builders = {"p4torch": lambda: linear.step(property, 512, 1), "nn.Linear": lambda: linear.plain_step(512)}
    return _ratio(builders, cores())


def _deep_chain() -> Values:
    return _ratio({"p4torch": flows.deep_step, "nn.Linear": flows.plain_deep_step}, 1)


def _ratio(builders: dict[str, Callable[[], Any]], count: int) -> Values:
    timed = compare(builders, EFFORT, count)
    for reason, failed in timed.absent.values():
        raise RuntimeError(reason) if failed else layers.Missing(reason)
    return {"ratio": ratio_of(timed.times["p4torch"], timed.times["nn.Linear"])[0]}


# --- against what is recorded ---------------------------------------------------------------------------------


def recorded(path: Path) -> Values | None:
    """The recorded values, or None if there are none. Raises CheckpointError for a file that is something else."""
    if not path.exists():
        return None
    stored = read_json(path)
    try:
        return {str(name): float(value) for name, value in stored["values"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"`{path}` must hold recorded values of the short bench: {error!r}") from error


def record(path: Path, values: Values, machine: dict[str, Any]) -> None:
    """Write them, whole or not at all."""
    rounded = {name: round(value, 4) for name, value in values.items()}
    write_json(path, {"machine": machine, "tolerance": TOLERANCE, "values": rounded})


def worse(now: Values, before: Values) -> list[str]:
    """What got worse by more than the tolerance, one sentence each; and what was recorded, but is gone."""
    result = [
        f"{name}: {value:g}, recorded {before[name]:g} ({value / before[name]:.2f} times)"
        for name, value in now.items()
        if name in before and value > TOLERANCE * before[name]
    ]
    return result + [f"{name}: recorded {before[name]:g}, not measured now" for name in before if name not in now]
