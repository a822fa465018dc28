"""Targets: which tensor of which module is meant, and whether it can carry a perturbation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from p4torch.core.perturbation import Perturbation, property_name
from p4torch.errors import ArgumentError
from p4torch.parametrize.sharding import is_sharded
from p4torch.properties.low_rank_update import LowRankUpdate

#: A module and the name of a tensor in it.
Target = tuple[nn.Module, str]
#: What wrappers call the model inside: activation checkpointing and FSDP, which leave it out of state dictionaries;
#: torch.compile and Lightning Fabric.
UNSAVED = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module")
WRAPPED = (*UNSAVED, "_orig_mod", "_forward_module", "_original_module")
#: Those that call it `module`, as others may call a part.
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
#: What `nn.utils.weight_norm`, `spectral_norm` and `prune` call the parameters that they compute a tensor from.
_HOOKED = ("_g", "_v", "_orig")


def paths(model: nn.Module, every: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """All modules, each once or at `every` of its paths, with the paths that they have in the plain model."""
    plain, modules = dict[str, str](), dict[str, nn.Module]()
    for path, module in model.named_modules(remove_duplicate=not every):
        parent, _, name = path.rpartition(".")
        wrapped = name in WRAPPED or (name == "module" and isinstance(modules[parent], _WRAPPERS))
        plain[path] = plain[parent] if wrapped else joined(plain.get(parent, ""), name)
        modules[path] = module
        yield plain[path], module


def joined(path: str, name: str) -> str:
    """The dotted path of a tensor."""
    return f"{path}.{name}" if path else name


def locate(model: nn.Module, tensor_name: str) -> tuple[nn.Module, str]:
    """The module that holds the tensor of a dotted path, and the tensor's name there.

    Raises:
        ArgumentError: no such module, one that is a part of a perturbation, or a model that is distributed already.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError.of("module", "an nn.Module", type(model).__name__)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ArgumentError.of("module", "perturbed before it is wrapped, which registers what trains", "the wrapper")
    if not isinstance(tensor_name, str):
        raise ArgumentError.of("tensor_name", "a name or a dotted path", type(tensor_name).__name__)
    path, _, name = tensor_name.rpartition(".")
    module = dict(paths(model, every=True)).get(path)
    if module is None:
        raise ArgumentError.of(
            "tensor_name", f"a path in {type(model).__name__}", f"{tensor_name!r}: there is no {path!r}"
        )
    if isinstance(module, (Perturbation, parametrize.ParametrizationList)):
        raise ArgumentError.of("tensor_name", "a tensor of a plain module", f"{tensor_name!r}, of a parametrization")
    return module, name


def plain_parameter(module: nn.Module, tensor_name: str) -> nn.Parameter:
    """The parameter of that name.

    Raises:
        ArgumentError: it is not a plain, dense, floating-point Parameter.
    """
    name = repr(tensor_name)
    if parametrize.is_parametrized(module, tensor_name):
        chain = module.parametrizations[tensor_name]  # type: ignore[index]
        got = f"{name}, which has one: {', '.join(type(part).__name__ for part in chain)}"
        raise ArgumentError.of("tensor_name", "a tensor without a parametrization", got)
    tensor = module._parameters.get(tensor_name)
    if tensor is None:
        names = ", ".join(name for name, value in module._parameters.items() if value is not None) or "none"
        if tensor_name in module._buffers:
            name += ", a buffer"
        elif any(tensor_name + suffix in module._parameters for suffix in _HOOKED):
            name += ", which a hook (weight_norm, spectral_norm, prune) computes from others: remove that first"
        raise ArgumentError.of("tensor_name", f"a parameter of {type(module).__name__} ({names})", name)
    if is_lazy(tensor):
        got = f"{name} of a lazy module: run a batch through it first"
        raise ArgumentError.of("tensor_name", "an initialized parameter", got)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise ArgumentError.of("tensor_name", "a parameter of a floating-point dtype", f"{name}, {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise ArgumentError.of("tensor_name", "a dense parameter", f"{name}, {tensor.layout}")
    if is_sharded(tensor):
        raise ArgumentError.of("tensor_name", "perturbed before `fully_shard`", f"{name}, which is sharded")
    return tensor


def find_targets(model: nn.Module, tensor_name: str) -> list[Target]:
    """All places of the model where the tensor of a dotted path is a parameter, that path's own first. More than one:
    tied weights.

    Raises:
        ArgumentError: no such parameter; or another parameter shares its memory, and they would come apart.
    """
    module, name = locate(model, tensor_name)
    tensor, targets = plain_parameter(module, name), [(module, name)]
    for path, other in paths(model):
        for other_name, value in other._parameters.items():
            if value is tensor and (other is not module or other_name != name):
                targets.append((other, other_name))
            elif value is not None and value is not tensor and _share_memory(value, tensor):
                raise _tied(joined(path, other_name), tensor_name, "two Parameters that share their memory")
    return targets


def _share_memory(one: Tensor, other: Tensor) -> bool:
    if is_lazy(one) or one.is_meta or one.layout is not torch.strided or one.device != other.device:
        return False
    return one.numel() == other.numel() > 0 and one.data_ptr() == other.data_ptr()


def check_untied(modules: Sequence[tuple[str, nn.Module]], bases: Mapping[int, tuple[str, nn.Module]]) -> None:
    """Refuse a base, given by id with its site and the chain of parametrizations that holds it, that others hold."""
    for path, module in modules:
        for name, value in module._parameters.items():
            base = bases.get(id(value))
            if base is not None and module is not base[1]:
                other = joined(path, name).replace("parametrizations.", "").removesuffix(".original")
                raise _tied(other, base[0], "perturb them together, by a path: p4.perturb(model, ...)")


def _tied(one: str, other: str, why: str) -> ArgumentError:
    got = f"`{one}` and `{other}`: {why}"
    return ArgumentError.of("model", "without a perturbed tensor that is also used where it is not perturbed", got)


def check_embedding(module: nn.Module, tensor_name: str, perturbation: Perturbation, viewed: bool) -> None:
    """Refuse tables of embeddings that do what no perturbation, or not this one, can follow.

    torch promises that the row at `padding_idx` stays. It does under elementwise and row-wise properties, and under a
    plain low-rank update, where its row of U remains 0; under others rows move together.
    """
    if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or tensor_name != "weight":
        return
    kind = type(module).__name__
    together = viewed or (perturbation.event_dim > 1 and not isinstance(perturbation, LowRankUpdate))
    if module.sparse:
        raise ArgumentError.of("module", f"an {kind} with a dense gradient", "sparse=True")
    if module.max_norm is not None:
        raise ArgumentError.of("module", f"an {kind} that does not rescale its rows", f"max_norm={module.max_norm}")
    if module.padding_idx is not None and together:
        expected = f"an {kind} without a padding row, which {property_name(perturbation)} would move"
        raise ArgumentError.of("module", expected, f"padding_idx={module.padding_idx}")


# --- what is there already ----------------------------------------------------------------------------------------


def chain_of(module: nn.Module, tensor_name: str) -> parametrize.ParametrizationList:
    """What torch makes a parametrized tensor from: the perturbation, maybe a view, maybe more."""
    return cast(parametrize.ParametrizationList, module.parametrizations[tensor_name])  # type: ignore[index]


def original(module: nn.Module, tensor_name: str) -> nn.Parameter:
    """The base of a parametrized tensor."""
    return cast(nn.Parameter, chain_of(module, tensor_name).original)
