"""Sites: where perturbations sit in a model. `perturb` puts one there, `finalize` removes all."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from p4torch.errors import ArgumentError, CheckpointError, OptimizerError
from p4torch.linear import factored_class, plain_class, sole_perturbation
from p4torch.merging import Agreement, MergeReport
from p4torch.perturbation import Perturbation, Unperturbed


@dataclass(frozen=True)
class Site:
    """One (module, tensor name) that carries a perturbation; `name` is the tensor's dotted path in the model."""

    name: str
    module: nn.Module
    tensor_name: str
    base: nn.Parameter
    perturbation: Perturbation

    def merge(self, *, seed: int = 0, force: bool = False, agree: Agreement | None = None) -> MergeReport:
        """Merge this site; new directions are a pure function of (seed, site name, merge index)."""
        generator = direction_generator(seed, self.name, int(self.perturbation.attempts))
        return self.perturbation.merge(self.base, generator, force=force, agree=agree).at(self.name)

    def trainable(self) -> dict[str, nn.Parameter]:
        """B by full name, as far as it trains."""
        named = self.perturbation.own_parameters()
        return {f"{self.name}.{name}": value for name, value in named if value.requires_grad}

    def companions(self) -> dict[str, nn.Parameter]:
        """The ordinary trainable parameters of the module: its bias."""
        return {name: value for name, value in self.module.named_parameters(recurse=False) if value.requires_grad}

    def check_frozen(self) -> None:
        """What is tracked and the base must not train: `model.requires_grad_(True)` unfreezes them. Raises
        OptimizerError."""
        own = {name for name, _ in self.perturbation.own_parameters()}
        frozen = {"base": self.base, **dict(self.perturbation.named_parameters())}
        thawed = [name for name, value in frozen.items() if value.requires_grad and name not in own]
        if thawed:
            raise OptimizerError(
                f"`{self.name}` must be frozen, but requires a gradient in {', '.join(thawed)}: "
                "undo `requires_grad_(True)` for it"
            )

    def correct(self) -> None:
        """Undo rounding drift."""
        self.perturbation.correct(self.base)

    def refresh(self) -> None:
        """Recompute tracked quantities exactly."""
        self.perturbation.refresh(self.base)


def direction_generator(seed: int, site: str, index: int) -> torch.Generator:
    """The counter-based CPU generator of a reset: equal on every rank and device, and after a resume."""
    digest = hashlib.sha256(f"{seed}/{site}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Wrapper(nn.Module):
    """A model with something around it that `finalize` takes off."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ArgumentError.of("model", "an nn.Module", type(model).__name__)
        self.model = model

    def unwrap(self) -> nn.Module:
        """What `finalize` leaves: the model, after its perturbations are gone."""
        return self.model


def perturb(module: nn.Module, tensor_name: str, property: Callable[..., Perturbation], **options: Any) -> nn.Module:
    """Put a perturbation on a tensor of a module, in place: `p4.perturb(layer, "weight", p4.Invertible, rank=2)`.

    The present value becomes the frozen base: it is kept if it lies in the feasible set, else projected with a
    `ProjectionWarning`. `layer.weight` is then R_B(A); an `nn.Linear` computes with the factors directly. Build the
    optimizer afterwards (see `parameter_groups`). A plain checkpoint loads into the perturbed module, too.

    Returns:
        the module.

    Raises:
        ArgumentError: no such parameter, it is perturbed already, or the property refuses it; nothing has changed then.
    """
    tensor = _plain_parameter(module, tensor_name)
    if not callable(property) or isinstance(property, nn.Module):
        raise ArgumentError.of("property", "a class such as p4.Invertible", type(property).__name__)
    perturbation = property(tensor.detach(), **options)
    if not isinstance(perturbation, Perturbation):
        raise ArgumentError.of("property", "a Perturbation class", f"one that makes {type(perturbation).__name__}")
    plain = type(module)
    if tensor_name == "weight":
        module.__class__ = factored_class(plain)
    try:
        parametrize.register_parametrization(module, tensor_name, perturbation)
    except BaseException:
        module.__class__ = plain
        raise
    base = original(module, tensor_name)
    perturbation.trainable = tensor.requires_grad  # what `finalize` gives back
    base.requires_grad_(False)
    base.grad = None
    guard_checkpoints(module)
    return module


def original(module: nn.Module, tensor_name: str) -> nn.Parameter:
    """The base of a parametrized tensor."""
    return cast(nn.Parameter, module.parametrizations[tensor_name].original)  # type: ignore[index, union-attr]


def perturbations(module: nn.Module) -> Iterator[tuple[str, Perturbation]]:
    """The perturbed tensors of one module, without its children."""
    if "parametrizations" in module._modules:  # not by attribute: a compiled module shows those of the one inside
        for tensor_name, chain in cast(nn.ModuleDict, module.parametrizations).items():
            if isinstance(chain[0], Perturbation):  # type: ignore[index]
                yield tensor_name, chain[0]  # type: ignore[index]


def lookup(module: nn.Module, tensor_name: str) -> tuple[Perturbation, Tensor]:
    """(perturbation, base) of a tensor; a plain one has the identity perturbation. For modules that use their tensor
    through `matmul`, `solve`, `logabsdet`, before and after `finalize`."""
    return sole_perturbation(module, tensor_name) or (_UNPERTURBED, getattr(module, tensor_name))


_UNPERTURBED = Unperturbed(torch.zeros(1, 1))


def sites(model: nn.Module) -> Iterator[Site]:
    """All sites of a model, in the order of `named_modules`; a module that is shared counts once.

    Names are those of the plain model: what compiling or a distributed wrapper puts before them is left out.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError.of("model", "an nn.Module", type(model).__name__)
    wrapped = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    plain = cast(nn.Module, model.module) if wrapped else model
    for path, module in plain.named_modules():
        path = ".".join(part for part in path.split(".") if part != "_orig_mod")
        for tensor_name, perturbation in perturbations(module):
            name = f"{path}.{tensor_name}" if path else tensor_name
            yield Site(name, module, tensor_name, original(module, tensor_name), perturbation)


def penalty(model: nn.Module) -> Tensor:
    """The sum of all sites' penalties `()`, to be added to a loss."""
    terms = [site.perturbation.penalty(site.base) for site in sites(model)]
    if not terms:
        raise ArgumentError.of("model", "a module with at least one perturbed tensor", type(model).__name__)
    return torch.stack(terms).sum()


def parameter_groups(model: nn.Module, **perturbation_options: Any) -> list[dict[str, Any]]:
    """Two optimizer groups: the ordinary trainable parameters, and B, without weight decay.

    Decay of B would pull towards the base, not towards zero. Further options hold for the group of B only:
    `p4.parameter_groups(model, lr=3e-3)`.
    """
    guard_checkpoints(model)
    b = [value for site in sites(model) for _, value in site.perturbation.own_parameters() if value.requires_grad]
    known = {id(value) for value in b}
    others = [value for value in model.parameters() if value.requires_grad and id(value) not in known]
    return [{"params": others}, {"params": b, "weight_decay": 0.0, **perturbation_options}]


def finalize(model: nn.Module) -> nn.Module:
    """Merge and remove every perturbation, in place: plain modules with plain Parameters, ready for any checkpoint.

    The effective weights stay as they are, also where a merge would have been refused.
    """
    for site in list(sites(model)):
        module, trainable = site.module, site.perturbation.trainable
        parametrize.remove_parametrizations(module, site.tensor_name, leave_parametrized=True)
        cast(nn.Parameter, getattr(module, site.tensor_name)).requires_grad_(trainable)
        if not parametrize.is_parametrized(module):
            module.__class__ = plain_class(type(module))
    for module in model.modules():
        if next(sites(module), None) is None:
            hooks = module._load_state_dict_pre_hooks
            for key in [key for key, hook in hooks.items() if _is_admission(hook)]:
                del hooks[key]
    return _unwrap(model)


@torch.no_grad()
def _unwrap(module: nn.Module) -> nn.Module:
    """The same without wrappers: a child's place is taken by what it wraps."""
    for name, child in module.named_children():
        if child is not (plain := _unwrap(child)):
            setattr(module, name, plain)
    return module.unwrap() if isinstance(module, Wrapper) else module


def _plain_parameter(module: nn.Module, tensor_name: str) -> nn.Parameter:
    if not isinstance(module, nn.Module):
        raise ArgumentError.of("module", "an nn.Module", type(module).__name__)
    if parametrize.is_parametrized(module, tensor_name):
        raise ArgumentError.of("tensor_name", "a tensor without a parametrization", f"{tensor_name!r}, which has one")
    tensor = module._parameters.get(tensor_name)
    if tensor is None:
        names = ", ".join(name for name, value in module._parameters.items() if value is not None) or "none"
        raise ArgumentError.of("tensor_name", f"a parameter of {type(module).__name__} ({names})", repr(tensor_name))
    return tensor


# --- checkpoints ----------------------------------------------------------------------------------------------


def guard_checkpoints(module: nn.Module) -> None:
    """Make `module.load_state_dict` check every site in the module before it writes anything, and accept plain tensors
    for them. `perturb` does it for the module it is given; `parameter_groups`, `merge` and a `MergeScheduler` for their
    model."""
    if not any(_is_admission(hook) for hook in module._load_state_dict_pre_hooks.values()):
        module.register_load_state_dict_pre_hook(_admit_checkpoint)


def _is_admission(hook: Any) -> bool:
    return getattr(hook, "hook", hook) is _admit_checkpoint


def _admit_checkpoint(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
) -> None:
    for path, child in module.named_modules(prefix=prefix.removesuffix(".")):
        for tensor_name, perturbation in perturbations(child):
            _admit(child, tensor_name, perturbation, state, f"{path}." if path else "")


def _admit(module: nn.Module, tensor_name: str, perturbation: Perturbation, state: dict[str, Any], prefix: str) -> None:
    """Check the shapes of one site, and turn a plain `weight` into a base with B₀ and fresh tracked values."""
    inner = f"{prefix}parametrizations.{tensor_name}."
    plain = state.get(prefix + tensor_name)
    base = original(module, tensor_name)
    if plain is not None:
        if plain.shape != base.shape:
            raise _misfit(prefix + tensor_name, base.shape, plain.shape)
        admitted = copy.deepcopy(perturbation)
        try:
            state[inner + "original"] = admitted.right_inverse(plain.detach().to(base))
        except ArgumentError as error:
            raise CheckpointError(f"`{prefix}{tensor_name}` in the checkpoint cannot be a base: {error}") from error
        state.update({f"{inner}0.{key}": value for key, value in admitted.state_dict().items()})
        del state[prefix + tensor_name]
    for key, value in module.parametrizations[tensor_name].state_dict().items():  # type: ignore[index, union-attr]
        came = state.get(inner + key)
        if came is not None and came.shape != value.shape:
            raise _misfit(inner + key, value.shape, came.shape)


def _misfit(name: str, expected: torch.Size, came: torch.Size) -> CheckpointError:
    return CheckpointError(f"`{name}` in the checkpoint must have shape {tuple(expected)}, got {tuple(came)}")
