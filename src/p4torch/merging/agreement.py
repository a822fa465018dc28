"""What processes that train one model compare once, when its schedule is made, so that they never part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from torch import distributed as dist

from p4torch._options import check_choice
from p4torch.core.low_rank import Directions, LowRank
from p4torch.errors import ArgumentError
from p4torch.merging.distributed import Processes
from p4torch.parametrize.sharding import is_sharded, shard_group
from p4torch.parametrize.sites import Site
from p4torch.parametrize.targets import chain_of

#: Those of a schedule that its processes compare.
OPTIONS = ("every", "correct_every", "refresh_every", "optimizer_state", "directions", "rewarm", "stagger")


def join(sites: Sequence[Site], process_group: Any) -> Processes:
    """The processes that hold the sites' model: those of `process_group`; None: those of its shards, or all.

    Raises:
        ArgumentError: no group, or one that is not that of the shards.
    """
    shards = shard_group(site.base for site in sites)
    processes = Processes(shards if process_group is None else process_group)
    if shards is not None and _ranks(shards) != _ranks(processes.group):
        expected = f"the group over which the model is sharded, of the processes {_ranks(shards)}"
        raise ArgumentError.of("process_group", expected, _ranks(processes.group))
    return processes


def _ranks(group: Any) -> list[int]:
    return dist.get_process_group_ranks(group)


def agree_on_model(processes: Processes, sites: Sequence[Site], seed: Any, options: dict[str, Any]) -> Any:
    """Compare the sites and the options of a schedule, and give all processes the first one's values of what is not
    sharded. The seed, the first process's.

    Raises:
        ArgumentError: processes with other sites or options, or with shards of other models.
    """
    if processes.count == 1:
        return seed
    processes.check_same({**options, "number of sites": len(sites), **{site.name: _describe(site) for site in sites}})
    tensors = {}
    for site in sites:
        tensors.update({f"{site.name}.{name}": value for name, value in site.perturbation.state_dict().items()})
        others = {f"{site.name}, {name} beside it": value for name, value in site.other_parameters().items()}
        tensors.update({site.name: site.base, **others})
    plain = {name: value.detach() for name, value in tensors.items() if not is_sharded(value)}
    processes.share(plain, sharded=len(plain) < len(tensors))
    return processes.first(seed, "seed")


def _describe(site: Site) -> str:
    """A site in one line."""
    kind = " ".join(repr(chain_of(site.module, site.tensor_name)).split())
    trained = ", ".join(site.trainable()) or "nothing"
    return f"{kind} of {tuple(site.base.shape)} in {site.base.dtype}, in which {trained} trains"


def set_directions(sites: Sequence[Site], directions: Directions | None) -> None:
    """How low-rank perturbations draw their directions; None: as each was made."""
    if directions is not None:
        check_choice("directions", directions, get_args(Directions), "random, gradient or None")
        for site in sites:
            if isinstance(site.perturbation, LowRank):
                site.perturbation.gradient_directions = directions == "gradient"


def check_steps_on_shards(sites: Sequence[Site]) -> None:
    """Raise ArgumentError for options that need whole tensors between merges."""
    for site in (site for site in sites if is_sharded(site.base)):
        if site.perturbation.limits_steps:
            raise ArgumentError.of(
                "model",
                "without perturbations that shorten B after every step, which would have to collect the shards",
                f"{type(site.perturbation).__name__} at {site.name} in shards: use DistributedDataParallel",
            )
        if isinstance(site.perturbation, LowRank) and site.perturbation.gradient_directions:
            raise ArgumentError.of(
                "directions",
                "'random' for shards: a step's base is gone when directions are drawn from its gradient",
                f"'gradient' at {site.name}",
            )
