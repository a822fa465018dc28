"""Recovery from a bad batch: what else was poisoned at a site whose perturbation was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p4torch.core.transaction import AllReduce
from p4torch.errors import CheckpointError, RecoveryWarning, warn
from p4torch.merging import optimizer_state as memory
from p4torch.parametrize.sharding import cut, local, whole
from p4torch.parametrize.sites import Site

#: So many names stand in a warning.
SHOWN = 5

#: By site and by name.
Values = dict[str, dict[str, Tensor]]


class Recovery:
    """Keeps the `good` values, those of the last merge, of the ordinary parameters beside each site (a bias)."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, sites: Sequence[Site]) -> None:
        self.model, self.optimizer = model, optimizer
        self.good: Values = {
            site.name: {name: value.detach().clone() for name, value in site.other_parameters().items()}
            for site in sites
        }

    @torch.no_grad()
    def health(self, site: Site) -> Tensor:
        """What is finite at a site, in this process: its ordinary parameters that train, and what the optimizer
        remembers of B and of them. A mask, in that order, for which the device is not asked."""
        others = _training(site)
        health = [local(value).isfinite().all() for value in others.values()]
        for value in (*site.trainable().values(), *others.values()):
            health.append(memory.has_finite_state(self.optimizer, value))
        masks = [mask.to(site.base.device) for mask in health]
        return torch.stack(masks) if masks else site.base.new_ones(0, dtype=torch.bool)

    @torch.no_grad()
    def recover(
        self, site: Site, health: Tensor, nonfinite: Sequence[str], step: int, done: Sequence[str] = ()
    ) -> bool:
        """Where ordinary parameters are not finite, bring back the good ones; forget every moment that is not, also
        where the parameter still is, but for those that are `done`. `health` is that of all processes. Whether anything
        was poisoned; then there is a warning, which also names the `nonfinite` parameters of B, which have been
        reset."""
        has_nonfinite_state, done, healthy = list(nonfinite), list(done), iter(health.tolist())
        optimizer, other_parameters = memory.inner(self.optimizer), _training(site)
        for name, value in other_parameters.items():
            good = self.good[site.name].setdefault(name, torch.zeros_like(value))
            if next(healthy):
                local(good).copy_(local(value))
            else:
                local(value).copy_(local(good))
                memory.reset(optimizer, value)
                has_nonfinite_state.append(name)
                done.append(name)
        for name, value in {**site.trainable(), **other_parameters}.items():
            if not next(healthy) and name not in done:
                memory.reset(optimizer, value)
                has_nonfinite_state.append(f"state of {name}")
        if has_nonfinite_state:
            what = f"step {step}: non-finite {', '.join(has_nonfinite_state)} at {site.name}: reset"
            lost = self._nonfinite_elsewhere()
            if lost:
                what += (
                    f". Parameters outside of the sites are not finite either, and stay so: {', '.join(lost)}. Load a "
                    "checkpoint; `MergeScheduler(..., skip_nonfinite=True)` leaves such steps out"
                )
            else:
                what += ", training goes on"
            warn(what, RecoveryWarning)
        return bool(has_nonfinite_state)

    def _nonfinite_elsewhere(self) -> list[str]:
        """The names of parameters that the optimizer trains and that are not finite, some of them."""
        held = {id(value) for group in self.optimizer.param_groups for value in group["params"]}
        named = ((name, value) for name, value in self.model.named_parameters() if id(value) in held)
        bad = [name for name, value in named if not bool(value.isfinite().all())]
        return bad if len(bad) <= SHOWN else [*bad[:SHOWN], f"{len(bad) - SHOWN} more"]

    @torch.no_grad()
    def drop_nonfinite_gradients(self, step: int, all_reduce_min: AllReduce | None) -> bool:
        """Where a gradient is not finite, in some process: take all gradients from the optimizer, which then steps
        nowhere, and warn. Whether that was so."""
        values = [value for group in self.optimizer.param_groups for value in group["params"] if value.grad is not None]
        if not values:
            return False
        norms = torch.stack([norm.float() for norm in torch._foreach_norm([local(value.grad) for value in values])])
        finite = norms.isfinite().all()
        if bool(finite if all_reduce_min is None else all_reduce_min(finite)):
            return False
        for value in values:
            value.grad = None
        warn(f"step {step}: a gradient is not finite: this step is left out", RecoveryWarning)
        return True

    def check(self, good: Values) -> None:
        """Raise CheckpointError for values of other parameters."""
        expected, got = _shapes(self.good), _shapes(good)
        if expected != got:
            raise CheckpointError(f"`state['good']` must have the shapes {expected}, got {got}")


def _training(site: Site) -> dict[str, nn.Parameter]:
    return {name: value for name, value in site.other_parameters().items() if value.requires_grad}


def clone_values(values: Values) -> Values:
    """For a state: whole tensors, also where they are sharded; all processes collect them together."""
    return {site: {name: whole(value).clone() for name, value in named.items()} for site, named in values.items()}


def to_site_devices(values: Values, sites: Sequence[Site]) -> Values:
    """From a state: a copy on the devices of the sites, and in their shards."""
    like = {site.name: {"": site.base, **site.other_parameters(), **site.trainable()} for site in sites}
    return {
        site: {name: cut(value, like[site].get(name, like[site][""])) for name, value in named.items()}
        for site, named in values.items()
    }


def _shapes(values: Values) -> dict[str, object]:
    return {
        site: {name: tuple(value.shape) for name, value in named.items()} if isinstance(named, dict) else type(named)
        for site, named in values.items()
    }
