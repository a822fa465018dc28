"""Sites: where perturbations sit in a model. `perturb` puts one there, `finalize` removes all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from p4torch._eager import eager
from p4torch.core.options import event_dim_of, make, options_of
from p4torch.core.perturbation import Perturbation, property_name
from p4torch.core.shaped import check_block
from p4torch.core.transaction import AllReduce, Member, MergeReport
from p4torch.errors import ArgumentError, PropertyWarning, warn
from p4torch.parametrize.containers import watch_containers
from p4torch.parametrize.deferred import with_values
from p4torch.parametrize.freezing import keep_frozen
from p4torch.parametrize.lookup import perturbations
from p4torch.parametrize.registration import register, unregister
from p4torch.parametrize.sharding import check_shards, refuse_shards, reshard, sharded_modules
from p4torch.parametrize.state_dict import guard_checkpoints as guard_checkpoints, unguard_checkpoints
from p4torch.parametrize.targets import (
    chain_of,
    check_embedding,
    check_untied,
    find_targets,
    joined,
    original,
    paths,
    plain_parameter,
)
from p4torch.parametrize.views import ViewLike, view_of

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, repr=False)
class Site:
    """One (module, tensor name) that carries a perturbation; `name` is the tensor's dotted path in the model."""

    name: str
    module: nn.Module
    tensor_name: str
    base: nn.Parameter
    perturbation: Perturbation

    def __repr__(self) -> str:
        options = self.perturbation.extra_repr()
        return f"Site({self.name!r}, {tuple(self.base.shape)}, {property_name(self.perturbation)}({options}))"

    def merge(self, *, seed: int = 0, force: bool = False, all_reduce_min: AllReduce | None = None) -> MergeReport:
        """Merge this site; new directions are a pure function of (seed, site name, merge index)."""
        member = self.member(seed)
        return self.perturbation.merge(self.base, member.generator, force=force, all_reduce_min=all_reduce_min).at(
            self.name
        )

    def member(self, seed: int) -> Member:
        """This site in a merge."""
        generator = counter_based_generator(seed, self.name, self.perturbation.merge_index)
        return Member(self.name, self.perturbation, self.base, generator)

    def trainable(self) -> dict[str, nn.Parameter]:
        """B by full name, as far as it trains."""
        return {f"{self.name}.{name}": value for name, value in self.perturbation.training_parameters()}

    def other_parameters(self) -> dict[str, nn.Parameter]:
        """The ordinary parameters of the module, trainable or not: its bias."""
        return dict(self.module.named_parameters(recurse=False))

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of B trains now: `requires_grad_(False)` on the module."""
        return not self.trainable()

    def keep_frozen(self) -> None:
        """What is tracked and the base do not train, also after `model.requires_grad_(True)`."""
        keep_frozen(self.perturbation, self.base)

    def correct(self) -> None:
        """Undo rounding drift."""
        self.perturbation.correct(self.base)

    def refresh(self) -> None:
        """Recompute tracked quantities exactly."""
        self.perturbation.refresh(self.base)


def counter_based_generator(seed: int, site: str, index: int) -> torch.Generator:
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


def perturb(
    module: _Module,
    tensor_name: str,
    property: Callable[..., Perturbation],
    *,
    view: ViewLike = None,
    **options: Any,
) -> _Module:
    """Put a perturbation on a tensor of a module, in place: `p4.perturb(layer, "weight", p4.Invertible, rank=2)`.

    The present value becomes the frozen base: it is kept if it lies in the feasible set, else projected with a
    `ProjectionWarning`. `layer.weight` is then R_B(A); an `nn.Linear` computes with the factors directly. Build the
    optimizer afterwards (see `parameter_groups`). A plain checkpoint loads into the perturbed module, too. On the meta
    device only shapes are looked at: a checkpoint brings the values, after `to_empty`.

    Args:
        module: a layer, or a model that holds it.
        tensor_name: "weight", or a dotted path such as "encoder.0.weight". Other places in `module` that hold the same
            Parameter (tied weights) are perturbed with it: for those give the whole model and a path.
        property: a class such as `Invertible`, or a function that makes a perturbation from a base.
        view: which matrices `(..., n, m)` the property acts on. By default the tensor as it is: a matrix, or a stack
            of them in its last two dimensions; of the kernel of a convolution "matrix". "matrix": the first dimension
            and all others; of a kernel `(out, rest)`. "stack": the blocks of a recurrent layer's or an
            attention's weight; of a kernel one `(out, in)` for each position. "column": of a vector, a bias, `(n, 1)`.
            "tensor": as it is, a kernel, too. Or two functions of your own, from the tensor to matrices and back, or a
            `View`.
        options: of the property.

    Returns:
        the module.

    Raises:
        ArgumentError: no such parameter, or it cannot be perturbed: it is perturbed already, lazy, sharded, of no
            floating-point dtype, without such a view, or the property refuses it; nothing has changed then.
    """
    if not callable(property) or isinstance(property, nn.Module):
        raise ArgumentError.of("property", "a class such as p4.Invertible", type(property).__name__)
    check_block(property.func if isinstance(property, partial) else property, options)
    targets = find_targets(module, tensor_name)
    tensor = plain_parameter(*targets[0])
    viewed = view_of(*targets[0], tensor, view, event_dim_of(property))
    if tensor.is_meta:
        with with_values(targets, tensor, viewed, event_dim_of(property)):
            return perturb(module, tensor_name, property, view=view, **options)
    matrix = tensor.detach() if viewed is None else viewed.fit(tensor.detach())
    perturbation = make(property, matrix, options_of(property, *targets[0]) | options)
    if not isinstance(perturbation, Perturbation):
        raise ArgumentError.of("property", "a Perturbation class", f"one that makes {type(perturbation).__name__}")
    for owner, name in targets:
        check_embedding(owner, name, perturbation, viewed is not None)
    companions = [(owner, perturbation.companions(owner, name)) for owner, name in targets]
    perturbation.trainable = tensor.requires_grad  # what `finalize` gives back
    perturbation.tensor_name = tensor_name
    perturbation.untrained = tuple(name for name, value in perturbation.own_parameters() if not value.requires_grad)
    register(targets, tensor, matrix, [perturbation] if viewed is None else [perturbation, viewed])
    watch_containers()
    guard_checkpoints(module)
    for owner, _ in targets:
        guard_checkpoints(owner)
    _perturb_companions(module, companions)
    warnings = [text for text in (perturbation.warning_for(*target) for target in targets) if text is not None]
    if warnings:
        warn(f"`{tensor_name}`: {warnings[0]}", PropertyWarning)
    return module


def _perturb_companions(model: nn.Module, companions: list[tuple[nn.Module, dict[str, Callable[..., Any]]]]) -> None:
    """Perturb what goes with a tensor, by its path, since it may be tied."""
    for owner, properties in companions:
        for name, property in properties.items():
            if not is_parametrized(owner, name):
                path = next(path for path, module in paths(model) if module is owner)
                perturb(model, joined(path, name), property, view="column")


def sites(model: nn.Module) -> Iterator[Site]:
    """All sites of a model, in the order of `named_modules`; a module or tensor that is shared counts once.

    Names are those of the plain model: what compiling or a distributed wrapper puts before them is left out.

    Raises:
        ArgumentError: no model, or one that uses a base elsewhere, unperturbed: a tied weight of which `perturb` has
            seen one place only.
    """
    modules = _modules(model)
    by_base: dict[int, Site] = {}
    for site in _all_targets(modules):
        by_base.setdefault(id(site.base), site)
    if by_base:
        chains = {base: (site.name, chain_of(site.module, site.tensor_name)) for base, site in by_base.items()}
        check_untied(modules, chains)
    yield from by_base.values()


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise ArgumentError.of("model", "an nn.Module", type(model).__name__)
    return list(paths(model))


def _all_targets(modules: list[tuple[str, nn.Module]]) -> Iterator[Site]:
    """All sites; tied weights once for each place."""
    for path, module in modules:
        for tensor_name, perturbation in perturbations(module):
            yield Site(joined(path, tensor_name), module, tensor_name, original(module, tensor_name), perturbation)


def penalty(model: nn.Module) -> Tensor:
    """The sum of all sites' penalties `()`, to be added to a loss."""
    terms = [site.perturbation.penalty(site.base) for site in sites(model)]
    if not terms:
        raise ArgumentError.of("model", "a module with at least one perturbed tensor", type(model).__name__)
    return torch.stack(terms).sum()


def parameter_groups(model: nn.Module, **perturbation_options: Any) -> list[dict[str, Any]]:
    """Two optimizer groups: the ordinary trainable parameters, and B, without weight decay.

    Decay of B would pull towards the base, not towards zero. Further options hold for the group of B only:
    `p4.parameter_groups(model, lr=3e-3)`. In it stand the first factors of all sites, then the second ones: merges
    treat those alike.
    """
    check_shards(model)
    reshard(sharded_modules(model))
    guard_checkpoints(model)
    for site in sites(model):
        site.keep_frozen()
    factors = zip_longest(*(site.trainable().values() for site in sites(model)))
    b = [value for same in factors for value in same if value is not None]
    known = {id(value) for value in b}
    others = [value for value in model.parameters() if value.requires_grad and id(value) not in known]
    return [{"params": others}, {"params": b, "weight_decay": 0.0, **perturbation_options}]


@overload
def finalize(model: Wrapper) -> nn.Module: ...
@overload
def finalize(model: _Module) -> _Module: ...
@eager
def finalize(model: nn.Module) -> nn.Module:
    """Merge and remove every perturbation, in place: plain modules with plain Parameters, ready for any checkpoint.

    The effective weights stay as they are, also where a merge would have been refused. A base that is not in S any
    more, because something else has written into it, gets a `PropertyWarning`.

    Raises:
        ArgumentError: a model in shards.
    """
    refuse_shards(model, "finalize")
    known = dict[int, str]()
    for site in list(_all_targets(_modules(model))):
        if known.setdefault(id(site.base), site.name) == site.name:
            _warn_of_defect(site)
        unregister(site.module, site.tensor_name)
    for module in model.modules():
        unguard_checkpoints(module)
    return _unwrap(model)


@torch.no_grad()
def _warn_of_defect(site: Site) -> None:
    """Merges leave no defect beyond rounding."""
    if site.base.is_meta:
        return
    defect = float(site.perturbation.defect(site.base).max())
    if not defect <= torch.finfo(site.base.dtype).eps ** 0.5:
        warn(
            f"the base of `{site.name}` does not lie in the set of {property_name(site.perturbation)} (defect "
            f"{defect:.3g}): something else than merges has written into it, such as an average over training, for "
            "which there is p4torch.training.WeightAverage. `module.weight = tensor` admits a tensor",
            PropertyWarning,
        )


@torch.no_grad()
def _unwrap(module: nn.Module) -> nn.Module:
    """The same without wrappers: a child's place is taken by what it wraps."""
    for name, child in module.named_children():
        if child is not (plain := _unwrap(child)):
            setattr(module, name, plain)
    return module.unwrap() if isinstance(module, Wrapper) else module
