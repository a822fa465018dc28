"""Merges of sharded models: the tensors of some sites are collected, merged in all processes alike, and cut again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, distributed as dist, nn

from p4torch.errors import ArgumentError
from p4torch.merging.joint import Group
from p4torch.merging.stacks import stacks
from p4torch.parametrize.sharding import is_sharded, local, rows, shard_group
from p4torch.parametrize.sites import Site
from p4torch.parametrize.targets import chain_of, original

#: Sites whose tensors have so many bytes together are merged at once, in processes that have to agree.
BATCH_BYTES = 2**30
#: Parts of a buffer begin at multiples of so many bytes, those of the longest number.
_ALIGNMENT = 16

#: A parameter, and the modules that hold it under a name.
_Places = list[tuple[nn.Module, str]]


def batches(groups: Sequence[Group], processes: int) -> Iterator[list[Group]]:
    """What is merged at once: groups that are alike in one process; else as many as `BATCH_BYTES` allow."""
    if processes == 1:
        yield from stacks(groups)
        return
    batch: list[Group] = []
    size = 0
    for group in groups:
        more = sum(value.numel() * value.element_size() for value, _ in _tensors([group]))
        if batch and size + more > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch, size = [*batch, group], size + more
    if batch:
        yield batch


@contextmanager
def gathered(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """The groups with whole tensors in their modules: bases, B, and what is tracked. One all-gather collects what is
    sharded; in the end each process keeps its rows of what was written, or, after an error, of what there was."""
    for site in (site for group in groups for site in group.sites):
        if original(site.module, site.tensor_name) is not site.base:
            raise ArgumentError.of(
                "model", "sharded before its scheduler is made, and not again", f"other parameters at {site.name} since"
            )
    shards = [(value, places) for value, places in _tensors(groups) if is_sharded(value)]
    if not shards:
        yield list(groups)
        return
    wholes = _all_gather([value for value, _ in shards])
    parameters = [
        nn.Parameter(full, requires_grad=value.requires_grad) for full, (value, _) in zip(wholes, shards, strict=True)
    ]
    try:
        for parameter, (_, places) in zip(parameters, shards, strict=True):
            _put(parameter, places)
        yield [replace(group, sites=tuple(_with_base(site) for site in group.sites)) for group in groups]
        with torch.no_grad():
            for parameter, (value, _) in zip(parameters, shards, strict=True):
                local(value).copy_(parameter.narrow(0, *rows(value)))
    finally:
        for value, places in shards:
            _put(cast(nn.Parameter, value), places)


def _with_base(site: Site) -> Site:
    return replace(site, base=original(site.module, site.tensor_name))


def _tensors(groups: Sequence[Group]) -> list[tuple[Tensor, _Places]]:
    """All parameters of the groups' sites, or of their networks, each once with its places."""
    places: dict[int, tuple[Tensor, _Places]] = {}
    for group in groups:
        chains = [chain_of(site.module, site.tensor_name) for site in group.sites]
        for part in chains if group.network is None else [group.network]:
            for module in part.modules():
                for name, value in module._parameters.items():
                    if value is not None:
                        places.setdefault(id(value), (value, []))[1].append((module, name))
    return list(places.values())


def _put(parameter: nn.Parameter, places: _Places) -> None:
    for module, name in places:
        module._parameters[name] = parameter


@torch.no_grad()
def _all_gather(shards: Sequence[Tensor]) -> list[Tensor]:
    """The whole tensors, by one collective over their bytes."""
    group = shard_group(shards)
    count = dist.get_world_size(group)
    sizes = [_padded_rows(value, count) * value.shape[1:].numel() * value.element_size() for value in shards]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    sent = torch.zeros(starts[-1], dtype=torch.uint8, device=local(shards[0]).device)
    for start, value in zip(starts, shards, strict=False):
        part = _bytes(local(value))
        sent[start : start + part.numel()] = part
    received = sent.new_empty(count * starts[-1])
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    gather(received, sent, group=group)
    received = received.view(count, -1)
    return [
        received[:, start : start + size].contiguous().view(value.dtype).view(-1, *value.shape[1:])[: value.shape[0]]
        for start, size, value in zip(starts, sizes, shards, strict=False)
    ]


def _padded_rows(value: Tensor, count: int) -> int:
    return -(-value.shape[0] // count)


def _bytes(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.contiguous().view(-1).view(torch.uint8)
