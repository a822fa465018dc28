"""The sites of a model as a table."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod

import torch
from torch import Tensor, nn

from p4torch.core.perturbation import property_name
from p4torch.parametrize.sharding import is_sharded
from p4torch.parametrize.sites import Site, sites


@dataclass(frozen=True)
class SiteSummary:
    """One site: its `name`; the `shape` of its base; its `property`; the options of its `perturbation`; how many
    numbers of B are `trainable`; `skips`, how many merges were refused, over all matrices of a stack; the `defect`, how
    far the base is from the feasible set, the largest of a stack, or None where the values are not here (on the meta
    device, in shards).
    """

    name: str
    shape: tuple[int, ...]
    property: str
    perturbation: str
    trainable: int
    skips: int
    defect: float | None

    def cells(self) -> tuple[str, ...]:
        """As a row of text."""
        shape = " x ".join(map(str, self.shape)) or "1"
        defect = "-" if self.defect is None else f"{self.defect:.1e}"
        return self.name, shape, self.property, self.perturbation, f"{self.trainable:,}", f"{self.skips:,}", defect


@dataclass(frozen=True)
class Summary:
    """What `p4torch.summary` returns: the `rows`; `print` shows them as a table."""

    rows: tuple[SiteSummary, ...]

    @property
    def trainable(self) -> int:
        """How many numbers of all perturbations train."""
        return sum(row.trainable for row in self.rows)

    @property
    def perturbed(self) -> int:
        """How many numbers all bases have."""
        return sum(prod(row.shape) for row in self.rows)

    def __str__(self) -> str:
        header = tuple(field.name for field in fields(SiteSummary))
        rows = [header, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(_aligned, row, widths, range(len(row)))).rstrip() for row in rows]
        rule = "  ".join("-" * width for width in widths)
        count = "1 site" if len(self.rows) == 1 else f"{len(self.rows):,} sites"
        total = f"{count}: {self.trainable:,} trainable numbers, {self.perturbed:,} perturbed ones"
        return "\n".join([lines[0], rule, *lines[1:], total])

    __repr__ = __str__


#: Columns of numbers, from here on, stand on the right.
_FIRST_NUMBER = 4


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column >= _FIRST_NUMBER else cell.ljust(width)


def summary(model: nn.Module) -> Summary:
    """A table of the sites of a model: `print(p4.summary(model))`. Defects cost an SVD or a determinant of each base,
    for some properties.

    Raises:
        ArgumentError: as `sites`.
    """
    return Summary(tuple(map(_row, sites(model))))


def _row(site: Site) -> SiteSummary:
    perturbation = site.perturbation
    options = perturbation.extra_repr()
    return SiteSummary(
        name=site.name,
        shape=tuple(site.base.shape),
        property=property_name(perturbation),
        perturbation=options or type(perturbation).__name__,
        trainable=sum(value.numel() for value in site.trainable().values()),
        skips=int(perturbation.skips.sum()) if not perturbation.skips.is_meta else 0,
        defect=_defect(site),
    )


@torch.no_grad()
def _defect(site: Site) -> float | None:
    base: Tensor = site.base
    if base.is_meta or is_sharded(base):
        return None
    return float(site.perturbation.defect(base).max())
