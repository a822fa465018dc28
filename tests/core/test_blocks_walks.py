"""Ten thousand merges of blocks in float32: inverse, log|det|, sign and property are kept as with rank one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tests.constructors import BLOCKS, Factory, Large
from tests.properties.test_invertible import LOGABSDET_ERROR, WORSE_THAN_FRESH
from tests.properties.test_long_runs import KEPT
from torch import Tensor

import p4torch as p4
from p4torch import linalg
from p4torch.testing._cases import default_sample

MERGES, CHECKED = 10_000, 500
#: Of the normal numbers in B before each merge, and of the pull in units of its gradient.
NOISE, PULL = 0.02, 0.02
#: log|det| in float64, from what is tracked in float32: a sum over the first orders of 300 roundings of a matrix.
FOLLOWED = 1e-7

INVERTIBLE = {
    f"invertible-{form}-{block}": (partial(p4.Invertible, form=form, block=block), Large((size, size)))
    for form in ("additive", "relative", "exponential", "triangular")
    for block, size in ((16, 64), ("all", 32))
    if form != "additive" or block == "all"
}
NAMES = ("unit-determinant-blocks", "positive-definite-blocks", "orthogonal-blocks", "symplectic-blocks")
OTHERS = {name: (row.large.factory or row.factory, row.large) for name in NAMES if (row := BLOCKS[name]).large}
WALKS: dict[str, tuple[Factory, Large]] = INVERTIBLE | OTHERS


class Walk:
    """Random moves, and a pull that keeps the matrix well-conditioned: along the gradient of ‖A‖²/2 - log|det A|."""

    def __init__(self, factory: Factory, large: Large, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        base = (large.sample or default_sample(factory, large.shape))(self.generator)
        base = base.float().contiguous()
        self.perturbation: Any = factory(base)
        self.perturbation.scale = 1.0
        self.base = self.perturbation.right_inverse(base).detach().clone()

    def merge(self) -> p4.MergeReport:
        b = list(self.perturbation.parameters(recurse=False))
        energy = self.perturbation(self.base).square().sum() / 2 - self.perturbation.logabsdet(self.base)
        with torch.no_grad():
            for value, gradient in zip(b, torch.autograd.grad(energy, b), strict=True):
                noise = torch.randn(value.shape, dtype=value.dtype, generator=self.generator)
                value.copy_(NOISE * noise - PULL * gradient)
        self.perturbation.after_step()
        return self.perturbation.merge(self.base, self.generator, force=True)  # type: ignore[no-any-return]

    def check(self) -> None:
        exact = linalg.in_double(self.base)
        sign, logabsdet = torch.linalg.slogdet(exact)
        fresh = off(exact, torch.linalg.inv(self.base))
        assert off(exact, self.perturbation.inverse(self.base)) <= WORSE_THAN_FRESH * fresh
        assert abs(float(self.perturbation.logabsdet(self.base).detach() - logabsdet)) <= LOGABSDET_ERROR
        assert self.perturbation.sign(self.base) == sign
        assert float(self.perturbation.defect(self.base)) <= KEPT * float(torch.linalg.matrix_norm(exact, ord=2))


def off(matrix: Tensor, inverse: Tensor) -> float:
    """The largest entry of A X - I."""
    return float((matrix @ linalg.in_double(inverse.detach()) - linalg.eye_like(matrix)).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKS)
def test_ten_thousand_merges_in_float32(name: str) -> None:
    walk = Walk(*WALKS[name], seed=1)
    for step in range(1, MERGES + 1):
        assert walk.merge().ok
        if step % CHECKED == 0:
            walk.check()


@pytest.mark.parametrize("name", [*INVERTIBLE, *NAMES[:2]])
def test_what_rounding_does_to_the_determinant_is_followed(name: str) -> None:
    """That of a definite matrix is rounded, and so is the factor from which it is formed anew at the next merge."""
    walk = Walk(*WALKS[name], seed=2)
    for _ in range(300):
        assert walk.merge().ok
    logabsdet = torch.linalg.slogdet(walk.base.double())[1]
    assert abs(float(walk.perturbation.tracked.logabsdet - logabsdet)) <= FOLLOWED
