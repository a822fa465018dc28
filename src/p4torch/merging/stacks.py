"""Sites that are alike merge as one stack of matrices: a merge of small matrices is made of calls, not of numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Size, Tensor, nn

from p4torch import linalg
from p4torch.core.masks import all_finite
from p4torch.core.perturbation import Perturbation
from p4torch.core.transaction import MergeReport, Proposal
from p4torch.core.validation import check_fits
from p4torch.merging.joint import Group
from p4torch.parametrize.sharding import is_sharded
from p4torch.parametrize.sites import Site

#: Matrices of more numbers are merged one by one: for them calls cost little, and copies much.
LARGEST = 2**16

#: What may differ among perturbations that are alike.
_OWN = {*vars(nn.Module()), "tensor_name", "probed", "sketch", "_read"}

M = TypeVar("M", bound=nn.Module)


def stacks(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that merge together, in the order of their first ones: single sites that are alike; others alone."""
    together: dict[Hashable, list[Group]] = {}
    for group in groups:
        together.setdefault(_kind(group), []).append(group)
    return list(together.values())


def on_their_own(groups: Sequence[Group]) -> bool:
    """Whether there are groups, and each is a site that merges by itself: what `merge_stack` takes."""
    return bool(groups) and all(group.network is None for group in groups)


def _kind(group: Group) -> Hashable:
    """What groups have in common that merge together."""
    site = group.sites[0]
    perturbation, base = site.perturbation, site.base
    if (
        group.network is not None
        or group.is_frozen
        or not perturbation.stackable
        or base.numel() > LARGEST
        or is_sharded(base)
    ):
        return id(group)
    return base.shape, base.dtype, base.device, perturbation.merge_index, _structure(perturbation)


def _structure(module: nn.Module) -> Hashable:
    """All of a module but its numbers. What cannot be compared is equal to itself alone."""
    options = tuple((name, _comparable(value)) for name, value in sorted(vars(module).items()) if name not in _OWN)
    tensors = tuple(
        (name, value if value is None else (value.shape, value.dtype))
        for named in (module._parameters, module._buffers)
        for name, value in named.items()
    )
    parts = tuple((name, part and _structure(part)) for name, part in module._modules.items())
    return type(module), options, tensors, parts


def _comparable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _comparable(entry)) for name, entry in value.items())
    try:
        hash(value)
    except TypeError:
        return id(value)
    return id(value) if isinstance(value, Tensor) else cast(Hashable, value)


@torch.no_grad()
def merge_stack(sites: Sequence[Site], seed: int) -> list[MergeReport] | None:
    """Merge one site, or several that are alike, if all is as usual: every B is finite, and every candidate is
    accepted. Otherwise nothing is done, and the result is None. The device is asked once, besides for candidates.

    Raises:
        ArgumentError: a base that its B was not made for.
    """
    perturbations = [site.perturbation for site in sites]
    for site, perturbation in zip(sites, perturbations, strict=True):
        check_fits(site.base, "base", perturbation.base_shape, perturbation.own_parameters())
    if len(sites) == 1:
        stack, base = perturbations[0], sites[0].base.detach()
    else:
        stack, base = stacked(perturbations), torch.stack([site.base.detach() for site in sites])
    try:
        with linalg.full_precision(base.device):
            proposal = stack.propose(base)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # numbers that are not finite
        return None
    finite = [all_finite(value) for _, value in stack.own_parameters()]
    finite += [] if proposal.base is None else [all_finite(proposal.base)]
    if not bool(torch.stack([*finite, *(~veto.mask.any() for veto in proposal.vetoes)]).all()):
        return None
    if not _write(sites, stack, proposal):
        return None
    torch._foreach_zero_([perturbation.skips for perturbation in perturbations])
    return [_finish(site, seed) for site in sites]


def _write(sites: Sequence[Site], stack: Perturbation, proposal: Proposal) -> bool:
    """Write what was accepted to the sites; false, and nothing is written, if that cannot be done for a stack."""
    if len(sites) == 1:
        if proposal.base is not None:
            sites[0].base.copy_(proposal.base)
        if proposal.write is not None:
            proposal.write(torch.ones_like(stack.skips, dtype=torch.bool))
        for tensor, value in proposal.tracked:
            tensor.copy_(value)
        return True
    places = {id(value): name for name, value in _tensors(stack).items()}
    if proposal.base is None or any(id(tensor) not in places for tensor, _ in proposal.tracked):
        return False
    own = [_tensors(site.perturbation) for site in sites]
    torch._foreach_copy_([site.base for site in sites], list(proposal.base.unbind(0)))
    for tensor, value in proposal.tracked:
        torch._foreach_copy_([tensors[places[id(tensor)]] for tensors in own], list(value.unbind(0)))
    return True


def _finish(site: Site, seed: int) -> MergeReport:
    """B <- B₀ of an accepted merge, and its report."""
    perturbation, member = site.perturbation, site.member(seed)
    perturbation._redraw(site.base, member.generator)
    perturbation.count_merge()
    report = MergeReport(perturbation.merge_index, perturbation.skips.numel(), 0, site=site.name)
    perturbation.after_commit(site.base, report)
    return report


def stacked(modules: Sequence[M]) -> M:
    """Perturbations that are alike as one, of a stack of bases: their tensors are stacked, `attempts` is shared."""
    first = modules[0]
    result = type(first).__new__(type(first))
    result.__dict__.update(first.__dict__)
    for kind in ("_parameters", "_buffers"):
        of_all = [getattr(module, kind) for module in modules]
        result.__dict__[kind] = {name: _stack([named[name] for named in of_all], name) for name in of_all[0]}
    result.__dict__["_modules"] = {
        name: part if part is None else stacked([cast(nn.Module, module._modules[name]) for module in modules])
        for name, part in first._modules.items()
    }
    if isinstance(first, Perturbation):
        cast(Any, result).base_shape = Size((len(modules), *first.base_shape))
    return result


def _stack(values: list[Tensor | None], name: str) -> Tensor | None:
    first = values[0]
    if first is None or name == "attempts":
        return first
    result = torch.stack([cast(Tensor, value).detach() for value in values])
    return nn.Parameter(result, requires_grad=False) if isinstance(first, nn.Parameter) else result


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
