"""Places: which tensor of which module is meant, and whether it can carry a perturbation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from p4torch.errors import ArgumentError
from p4torch.perturbation import Perturbation
from p4torch.properties.update import LowRankUpdate

#: What `nn.utils.weight_norm`, `spectral_norm` and `prune` call the parameters that they compute a tensor from.
_HOOKED = ("_g", "_v", "_orig")


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without what data-parallel wrappers put around it."""
    wrapped = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    return cast(nn.Module, model.module) if wrapped else model


def paths(model: nn.Module, every: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """All modules, each once or at `every` of its paths, with the paths that they have in the plain model."""
    for path, module in unwrapped(model).named_modules(remove_duplicate=not every):
        yield ".".join(part for part in path.split(".") if part != "_orig_mod"), module


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
        ArgumentError: it is not a plain, dense, floating-point Parameter with values.
    """
    name = repr(tensor_name)
    if parametrize.is_parametrized(module, tensor_name):
        chain = module.parametrizations[tensor_name]  # type: ignore[index]
        came = f"{name}, which has one: {', '.join(type(part).__name__ for part in chain)}"
        raise ArgumentError.of("tensor_name", "a tensor without a parametrization", came)
    tensor = module._parameters.get(tensor_name)
    if tensor is None:
        names = ", ".join(name for name, value in module._parameters.items() if value is not None) or "none"
        if tensor_name in module._buffers:
            name += ", a buffer"
        elif any(tensor_name + suffix in module._parameters for suffix in _HOOKED):
            name += ", which a hook (weight_norm, spectral_norm, prune) computes from others: remove that first"
        raise ArgumentError.of("tensor_name", f"a parameter of {type(module).__name__} ({names})", name)
    if is_lazy(tensor):
        came = f"{name} of a lazy module: run a batch through it first"
        raise ArgumentError.of("tensor_name", "an initialized parameter", came)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise ArgumentError.of("tensor_name", "a parameter of a floating-point dtype", f"{name}, {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise ArgumentError.of("tensor_name", "a dense parameter", f"{name}, {tensor.layout}")
    if tensor.is_meta:
        raise ArgumentError.of("tensor_name", "a parameter with values, on a real device", f"{name}, on meta")
    return tensor


def check_embedding(module: nn.Module, tensor_name: str) -> None:
    """Refuse tables of embeddings whose gradient, or whose forward pass, does what no perturbation can follow."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and tensor_name == "weight":
        kind = type(module).__name__
        if module.sparse:
            raise ArgumentError.of("module", f"an {kind} with a dense gradient", "sparse=True")
        if module.max_norm is not None:
            raise ArgumentError.of(
                "module", f"an {kind} that leaves its rows as they are", f"max_norm={module.max_norm}"
            )


def check_padding(module: nn.Module, tensor_name: str, perturbation: Perturbation, viewed: bool) -> None:
    """Refuse a padding row, which torch promises to leave alone, where rows move together. A row without a gradient
    stays where it is under elementwise and row-wise properties, and under a plain low-rank update: its row of U is 0.
    """
    padding = getattr(module, "padding_idx", None)
    if padding is None or not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or tensor_name != "weight":
        return
    if viewed or (perturbation.event_dim > 1 and not isinstance(perturbation, LowRankUpdate)):
        expected = f"an {type(module).__name__} without a padding row for {type(perturbation).__name__}, which moves it"
        raise ArgumentError.of("module", expected, f"padding_idx={padding}")


def check_sole_holder(model: nn.Module, module: nn.Module, tensor_name: str, tensor: Tensor) -> None:
    """Refuse a tensor that the model uses in two places: only one of them would be perturbed."""
    for path, other in paths(model):
        for name, value in other._parameters.items():
            if value is not None and (other, name) != (module, tensor_name) and _same(value, tensor):
                here = next(joined(path, tensor_name) for path, found in paths(model) if found is module)
                raise _tied(joined(path, name), here)


def check_untied(model: nn.Module, bases: dict[int, tuple[str, nn.Module]]) -> None:
    """Refuse bases, given by id with their name and the parametrization that holds them, which others hold as well."""
    for path, module in paths(model):
        for name, value in module._parameters.items():
            found = bases.get(id(value))
            if found is not None and module is not found[1]:
                raise _tied(joined(path, name).replace(".parametrizations.", ".").removesuffix(".original"), found[0])


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if is_lazy(one) or one.layout is not torch.strided or one.is_meta or one.device != other.device:
        return False
    return one.numel() == other.numel() and one.data_ptr() == other.data_ptr()


def _tied(one: str, other: str) -> ArgumentError:
    came = f"one tensor at {one} and {other}, of which a perturbation would move one only"
    return ArgumentError.of("model", "without tied weights where it is perturbed", came)
