"""Every property of the table in half precision: what is admitted, merges, and the defect that they leave."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.constructors import PERTURBATIONS, Row
from torch import Tensor

import p4torch as p4
from p4torch.testing._cases import Case, default_sample, parameters_of

#: Machine epsilons of defect: rounding leaves about one, and log|det A| of `UnitDeterminant` sums over n of them.
DEFECT = 8
#: Merges of one site, and by how much B moves before each: some units in the last place of A in bfloat16.
MERGES, MOVE = 20, 0.02
#: Added to an element of S, it leads out of S.
NOISE = 0.1
#: At least this share is accepted: `Invertible` may refuse a large move.
ACCEPTED = 0.95

COMPLEX = ("unitary", "special-unitary")  # torch has no complex bfloat16
REAL = [name for name in PERTURBATIONS if not name.startswith(COMPLEX)]


def element(row: Row, seed: int = 0) -> Tensor:
    """An element of S in float64."""
    sample = row.options.get("sample") or default_sample(row.factory, row.options.get("shape", (6, 6)))
    return sample(torch.Generator().manual_seed(seed))


def site_on(row: Row, base: Tensor) -> p4.Site:
    return Case(row.factory, lambda _: base, base.dtype, 0).site_at(base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", REAL)
def test_elements_are_kept_and_merged(name: str, dtype: torch.dtype) -> None:
    row = PERTURBATIONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        site = site_on(row, element(row).to(dtype))
    merged = 0
    for _ in range(MERGES):
        with torch.no_grad():
            for value in parameters_of(site).values():
                value.add_(torch.randn_like(value), alpha=MOVE)
        site.perturbation.after_step()
        merged += site.merge().merged
        defect = float(site.perturbation.defect(site.base).max())
        assert defect <= DEFECT * torch.finfo(dtype).eps
    assert merged >= ACCEPTED * MERGES * site.perturbation.skips.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", REAL)
def test_what_is_projected_lies_in_the_set(name: str, dtype: torch.dtype) -> None:
    row = PERTURBATIONS[name]
    base = element(row)
    base = (base + NOISE * torch.randn(base.shape, dtype=torch.float64)).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", p4.ProjectionWarning)
        site = site_on(row, base)
    assert float(site.perturbation.defect(site.base).max()) <= DEFECT * torch.finfo(dtype).eps
