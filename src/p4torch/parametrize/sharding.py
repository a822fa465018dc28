"""Models in shards: which tensors are, and which kinds of shards perturbations work with.

Those of FSDP2 do (`torch.distributed.fsdp.fully_shard`): each parameter is a DTensor of which a process holds some
rows, and the whole while its module computes. Nothing here imports torch's distributed packages: what has not been
imported has made no shards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from p4torch.errors import ArgumentError

#: What to do with shards that are not supported.
_WAY_OUT = "use `torch.distributed.fsdp.fully_shard` (FSDP2) on a one-dimensional mesh, or DistributedDataParallel"


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a DTensor."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, unless it is sharded. What is written there stays."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one collected from all processes."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def rows(tensor: Tensor) -> tuple[int, int]:
    """Where the part of this process begins in the first dimension of a sharded tensor, and how many rows it has."""
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    each = -(-tensor.shape[0] // mesh.size())
    begin = min(each * mesh.get_local_rank(), tensor.shape[0])
    return begin, min(each, tensor.shape[0] - begin)


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor on the device, and in the shards, of another one of its shape."""
    copy = whole(tensor).to(like.device, copy=True)
    if not is_sharded(like) or copy.shape != like.shape:
        return copy
    shards = like.detach().to(copy.dtype, copy=True)
    local(shards).copy_(copy.narrow(0, *rows(like)))
    return shards


def shard_group(tensors: Iterable[Tensor]) -> Any:
    """The processes over which these tensors are sharded; None if none is."""
    return next((tensor.device_mesh.get_group() for tensor in tensors if is_sharded(tensor)), None)  # type: ignore[attr-defined]


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules on which `fully_shard` was called."""
    return list(_of_kind(model, "FSDPModule"))


def reshard(modules: Iterable[Any]) -> None:
    """Free what a forward pass without a backward pass (an evaluation) has left whole: these modules hold shards
    again."""
    for module in modules:
        module.reshard()


def check_shards(model: nn.Module) -> None:
    """Raise ArgumentError for shards that perturbations do not work with, and for what is no model."""
    if not isinstance(model, nn.Module):
        raise ArgumentError.of("model", "an nn.Module", type(model).__name__)
    for _ in _of_kind(model, "FullyShardedDataParallel"):
        got = f"FullyShardedDataParallel (FSDP1), which flattens parameters: {_WAY_OUT}"
        raise ArgumentError.of("model", "sharded by FSDP2, if at all", got)
    shards = {name: value for name, value in model.named_parameters() if is_sharded(value)}
    if shards and not sharded_modules(model):
        got = f"{next(iter(shards))}, a DTensor of other origin (tensor parallelism, or a part of a sharded model)"
        raise ArgumentError.of("model", "sharded by FSDP2, and whole", f"{got}: {_WAY_OUT}")
    for name, value in shards.items():
        if value.device_mesh.ndim != 1 or not value.placements[0].is_shard(0):  # type: ignore[attr-defined]
            got = f"{name} with {value.placements}: {_WAY_OUT}"  # type: ignore[attr-defined]
            raise ArgumentError.of("model", "sharded along the first dimension of its parameters alone", got)


def refuse_shards(model: nn.Module, what: str) -> None:
    """Raise ArgumentError for a model in shards, for what works on whole tensors only."""
    check_shards(model)
    for name, value in model.named_parameters():
        if is_sharded(value):
            raise ArgumentError.of(
                "model",
                f"whole for `{what}`",
                f"{name} in shards: collect the state (torch.distributed.checkpoint.state_dict.get_model_state_dict "
                "with full_state_dict=True), and load it into a perturbed model that is not sharded",
            )


def _of_kind(model: nn.Module, name: str) -> Iterator[Any]:
    kind: Any = getattr(sys.modules.get("torch.distributed.fsdp"), name, None)
    return (module for module in model.modules() if kind is not None and isinstance(module, kind))
