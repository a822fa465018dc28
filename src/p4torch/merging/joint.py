"""Properties of a whole network: several sites that merge together, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from p4torch.core.transaction import MergeReport, Proposal, Transaction, Veto
from p4torch.errors import ArgumentError, OptimizerError
from p4torch.parametrize.sharding import check_shards, reshard, sharded_modules
from p4torch.parametrize.sites import Site, Wrapper, sites


class JointMerge(Wrapper):
    """A model whose sites merge all together or not at all, for a property that none of them has alone.

        network = MyProperty(model)                       # a JointMerge
        optimizer = torch.optim.Adam(p4.parameter_groups(network))
        p4.MergeScheduler(network, optimizer, every=50).attach()
        model = p4.finalize(network)                      # the plain model again

    A merge first builds and checks all candidates: each site's own (`Perturbation.propose` and its vetoes), and what
    the network makes of them. Then all of it is written, or nothing, with a report that names who refused. Only a B
    that is not finite is reset in either case. `MergeScheduler` and `p4.merge` find the network by themselves, alone or
    as a part of a larger model.

    A property of your own overrides `propose`, `vetoes`, or both, and may override `forward`. It may hold buffers, and
    change them (or other parameters) in the transaction: pairs (tensor, new value) in a proposal's `tracked`.
    """

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the model computes."""
        return self.model(*inputs, **options)

    def sites(self) -> list[Site]:
        """The sites that merge together: all of the model's."""
        return list(sites(self))

    def propose(self, sites: Sequence[Site]) -> list[Proposal]:
        """The candidates, one a site, after whatever the network does to them. By default each site's own."""
        return _propose(sites)

    def vetoes(self, sites: Sequence[Site], proposals: Sequence[Proposal]) -> list[Veto]:
        """The network's own reasons not to merge; masks `()`. None by default."""
        return []


@dataclass(frozen=True)
class Group:
    """Sites that merge at the same time: those of a network, or one that is on its own."""

    sites: tuple[Site, ...]
    network: JointMerge | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether all of its sites are frozen."""
        return all(site.is_frozen for site in self.sites)

    @property
    def interval(self) -> int:
        """The merge interval that its sites ask for: the shortest."""
        return min(site.perturbation.interval for site in self.sites)

    def transaction(self, seed: int, force: bool = False) -> Transaction:
        """The merge of all of it, with its candidates and not yet made."""
        members = [site.member(seed) for site in self.sites]
        if self.network is None:
            return Transaction(members, partial(_propose, self.sites), force=force)
        propose, vetoes = partial(self.network.propose, self.sites), partial(self.network.vetoes, self.sites)
        return Transaction(members, propose, force=force, joint_vetoes=vetoes)

    def merge(self, *, seed: int = 0, force: bool = False) -> list[MergeReport]:
        """Merge all of it; a report for each site."""
        transaction = self.transaction(seed, force)
        return transaction.commit(transaction.masks)


def _propose(sites: Sequence[Site]) -> list[Proposal]:
    return [site.perturbation.propose(site.base) for site in sites]


def groups(model: nn.Module) -> list[Group]:
    """All sites of a model in groups, in the order of their first sites.

    Raises:
        ArgumentError: a network in another one: a site can have part in one property only. A model in shards that are
            not those of FSDP2.
    """
    check_shards(model)
    reshard(sharded_modules(model))
    members, owners = list(sites(model)), dict[int, JointMerge]()
    for network in (module for module in model.modules() if isinstance(module, JointMerge)):
        for module in network.model.modules():
            if isinstance(module, JointMerge):
                got = f"{type(module).__name__} in {type(network).__name__}"
                raise ArgumentError.of("model", "without networks that merge together inside of each other", got)
            owners[id(module)] = network
    together: dict[int, list[Site]] = {}
    for site in members:
        together.setdefault(id(owners.get(id(site.module), site.perturbation)), []).append(site)
    return [Group(tuple(members), owners.get(id(members[0].module))) for members in together.values()]


def check_unchanged(model: nn.Module, members: Sequence[Site]) -> None:
    """Raise OptimizerError where a model has other sites than these by now, or other tensors in them."""
    now = {site.name: site for group in groups(model) for site in group.sites}
    before = {site.name: site for site in members}
    changed = sorted(now.keys() ^ before.keys()) or [
        name
        for name, site in before.items()
        if now[name].base is not site.base or now[name].perturbation is not site.perturbation
    ]
    if changed:
        raise OptimizerError(
            "`model` must have the sites and tensors with which the MergeScheduler was made; other ones: "
            f"{', '.join(changed)}. Build the optimizer and the MergeScheduler after the last `perturb`"
        )
