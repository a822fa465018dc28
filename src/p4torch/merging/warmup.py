"""Re-warming: a learning rate of B that rises linearly after a merge."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from p4torch.merging.recovery import Values
from p4torch.parametrize.sharding import local
from p4torch.parametrize.sites import Site


class Warmup:
    """Scales the updates of B from 1/(steps + 1) up to 1 in the `steps` that follow a merge of its site. `ages` and the
    values `before` the next step are those of the sites that are warming up."""

    def __init__(self, steps: int, sites: Sequence[Site]) -> None:
        self.steps, self.sites = steps, sites
        self.ages: dict[str, int] = {}
        self.before: Values = {}

    def start(self, site: Site) -> None:
        """A site was merged."""
        if self.steps:
            self.ages[site.name], self.before[site.name] = 0, _values(site)

    def stop(self, site: Site) -> None:
        """A site was reset."""
        self.ages.pop(site.name, None)
        self.before.pop(site.name, None)

    @torch.no_grad()
    def step(self) -> None:
        """Take back a part of the step that the optimizer just made in B: B <- B_before + f (B - B_before)."""
        for site in self.sites if self.ages else ():
            if site.name in self.ages and not site.is_frozen:
                self.ages[site.name] += 1
                before, factor = self.before[site.name], self.ages[site.name] / (self.steps + 1)
                for name, value in site.trainable().items():
                    if name in before:
                        part = local(value)
                        part.copy_(torch.lerp(local(before[name]), part, factor))
                if self.ages[site.name] == self.steps:
                    self.stop(site)
                else:
                    self.before[site.name] = _values(site)


def _values(site: Site) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in site.trainable().items()}
