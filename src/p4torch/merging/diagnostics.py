"""What merges show about training: sites that stall or explode are named, once for each kind of trouble."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from p4torch import linalg
from p4torch.core.transaction import MergeReport
from p4torch.errors import StallWarning, warn
from p4torch.merging.optimizer_state import missing_parameters
from p4torch.parametrize.sharding import whole
from p4torch.parametrize.sites import Site

#: So many of the last attempts are looked at: more than half of them refused, or of one matrix of a stack all, is a
#: stall.
ATTEMPTS = 8
#: A perturbation that has no gradient and stays where it is for so many intervals does not train.
INTERVALS = 2
#: An explosion: by how much the norm of a weight has grown in one interval, and since the schedule began. Growth counts
#: beyond rows of length 1 only, so that a layer may start at zero.
GROWTH, TOTAL_GROWTH = 5.0, 100.0


@dataclass(frozen=True)
class BeforeMerge:
    """Sites before a merge: of each the parts of B that are not redrawn, and the norms of all bases `(sites,)`."""

    b: list[dict[str, Tensor]]
    norms: Tensor


class Diagnostics:
    """Counts what goes wrong at merges, and warns once a site and kind (`StallWarning`).

    `refused` are the shares of a site that its last attempts refused, `still` counts intervals in which B did not move,
    `start` are the norms at first, and `warned` the kinds that have been told. The device is asked at merges only.
    """

    def __init__(self, optimizer: Optimizer, sites: Sequence[Site]) -> None:
        self.optimizer, self.sites = optimizer, sites
        self.refused: dict[str, list[float]] = {site.name: [] for site in sites}
        self.still: dict[str, int] = {site.name: 0 for site in sites}
        self.start: dict[str, float] = {}
        self.warned: dict[str, list[str]] = {site.name: [] for site in sites}
        self.warn_if_all_frozen()

    def warn_if_all_frozen(self) -> None:
        """To be called at first, and where a frozen site is due: warn if nothing trains, and nothing has been merged
        yet. A schedule that pauses later rests in silence."""
        if all(site.is_frozen for site in self.sites) and not any(self.refused.values()):
            self._warn(
                self.sites[0],
                "frozen",
                "it is frozen, and so are all perturbations of the model: none of them trains, and nothing is merged. "
                "PEFT's `get_peft_model` freezes all but its adapters. If they should train, unfreeze them "
                "(`for site in p4.sites(model): site.perturbation.requires_grad_(True)`) and build the optimizer then; "
                "if they should rest, leave out the scheduler",
            )

    @torch.no_grad()
    def before(self, sites: Sequence[Site]) -> BeforeMerge:
        """To be called before a merge."""
        return BeforeMerge(
            [{name: value.clone() for name, value in _kept(site)} for site in sites],
            _norms([site.base for site in sites]),
        )

    @torch.no_grad()
    def after(self, sites: Sequence[Site], reports: Sequence[MergeReport], before: BeforeMerge) -> None:
        """To be called after it; `warn_if_still` later, with the sites as the optimizer knows them. The device is asked
        once, for all of them."""
        if not sites:
            return
        pairs = list(zip(sites, reports, strict=True))
        reached = [site.base if report.ok else site.perturbation(site.base) for site, report in pairs]
        moves = [_moved(site, b) for site, b in zip(sites, before.b, strict=True)]
        numbers = torch.stack([before.norms, _norms(reached), torch.stack(moves).to(before.norms)]).tolist()
        for (site, report), was, now, moved in zip(pairs, *numbers, strict=True):
            self._refusals(site, report)
            if report.ok and not site.is_frozen:
                self.still[site.name] = 0 if moved else self.still[site.name] + 1
            if not report.nonfinite:
                self._growth(site, was, now)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return copy.deepcopy({name: getattr(self, name) for name in ("refused", "still", "start", "warned")})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where `state_dict` was taken."""
        for name, values in copy.deepcopy(state).items():
            setattr(self, name, values)

    # --- the kinds --------------------------------------------------------------------------------------------------

    def _refusals(self, site: Site, report: MergeReport) -> None:
        last = self.refused[site.name]
        last.append(report.skipped / max(1, report.merged + report.skipped))
        del last[:-ATTEMPTS]
        share, skips = sum(last) / ATTEMPTS, site.perturbation.skips
        stuck = int((skips >= ATTEMPTS).sum()) if report.skipped else 0
        most = len(last) == ATTEMPTS and share > 0.5
        if not most and not stuck:
            return
        what = f"{share:.0%} of its last {ATTEMPTS} merges were refused"
        if not most:
            what = f"merges of {stuck} of its {skips.numel()} matrices were refused {ATTEMPTS} times in a row"
        self._warn(
            site,
            "refused",
            f"{what} ({report.reason or 'not the last one'}). The base stays behind and B stays in the same few "
            "directions, so that this weight stalls. If bounds are the reason, drop them (`bounds=None`); if "
            "it is conditioning, take a smaller learning rate or a shorter interval (`every`)",
        )

    @torch.no_grad()
    def warn_if_still(self, site: Site) -> None:
        """Warn of a site that has not moved for too long, and say why."""
        if self.still[site.name] < INTERVALS:
            return
        b, redrawn = site.perturbation.own_parameters(), site.perturbation.directions
        gradients = [value.grad for name, value in b if value.requires_grad and name not in redrawn]
        missing = missing_parameters(self.optimizer, site.trainable())
        if not any(gradient is not None and bool(whole(gradient).any()) for gradient in gradients):
            self._warn(
                site,
                "gradient",
                f"its perturbation had no gradient (None, or zero) and did not move for {INTERVALS} merge intervals: "
                "this weight does not train. Make the loss depend on it (is the module used, outside of "
                "`torch.no_grad()` and `detach()`?), start from a matrix where the gradient is not zero, or freeze the "
                "module (`requires_grad_(False)`) if it should rest",
            )
        elif missing:
            self._warn(
                site,
                "optimizer",
                f"the optimizer does not hold {', '.join(missing)}: this weight does not train. Add what is missing: "
                "`optimizer.add_param_group({'params': [...]})`",
            )

    def _growth(self, site: Site, was: float, now: float) -> None:
        start, unit = self.start.setdefault(site.name, was), sqrt(site.base[..., :1].numel())
        if not (now <= GROWTH * max(was, unit) and now <= TOTAL_GROWTH * max(start, unit)):
            self._warn(
                site,
                "growth",
                f"the norm of its matrix went from {was:.3g} to {now:.3g} in one merge interval (it began with "
                f"{start:.3g}): steps lead too far, and the loss explodes with it. Take a smaller learning rate (for B "
                "alone: `p4.parameter_groups(model, lr=...)`), a smaller `scale` of the perturbation, or a shorter "
                "interval (`every`)",
            )

    def _warn(self, site: Site, kind: str, message: str) -> None:
        if kind not in self.warned[site.name]:
            self.warned[site.name].append(kind)
            warn(f"`{site.name}`: {message}", StallWarning)


def _kept(site: Site) -> list[tuple[str, Tensor]]:
    """The parts of B that merges do not redraw."""
    redrawn = site.perturbation.directions
    return [(name, value) for name, value in site.perturbation.own_parameters() if name not in redrawn]


def _moved(site: Site, before: dict[str, Tensor]) -> Tensor:
    """Whether B moved, `()`. B₀ does not depend on where B was: it did not where the reset left it as it was."""
    changes = [(before[name] != value).any() for name, value in _kept(site) if value.requires_grad]
    return torch.stack(changes).any() if changes else site.base.new_ones((), dtype=torch.bool)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norms of tensors, each as a whole, `(tensors,)`, at least in single precision."""
    parts = [linalg.at_least_single(tensor.detach()) for tensor in tensors]
    return torch.stack([norm.float() for norm in torch._foreach_norm(parts)]) if parts else torch.zeros(0)
