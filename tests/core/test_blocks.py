"""Block shapes: options, the order of the coordinates, both ways to compute, stacks, long walks. General checks are in
the table."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.constructors import BLOCKS
from tests.properties.test_half import element, site_on
from tests.properties.test_invertible import assert_tracked
from torch import Tensor, nn

import p4torch as p4
from p4torch.core.blocks import ALL_SIZE, DEFAULT_BLOCK, Blocks
from p4torch.parametrize.sites import counter_based_generator

#: A few products of small matrices in float64.
EXACT = 1e-12


def moved(base: Tensor, size: float = 0.3, property: Any = p4.Orthogonal, **options: Any) -> Any:
    perturbation = property(base, **options)
    with torch.no_grad():
        for value in perturbation.parameters(recurse=False):
            value.copy_(size * torch.randn_like(value))
    return perturbation


def orthogonal(*shape: int) -> Tensor:
    return torch.linalg.qr(torch.randn(shape, dtype=torch.float64))[0].contiguous()


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("property", "options", "message"),
    [
        (p4.Orthogonal, {"block": 0}, "`block` must be an integer from 1 to n = 6, or 'all', got 0"),
        (p4.Orthogonal, {"block": 7}, "`block` must be an integer from 1 to n = 6, or 'all', got 7"),
        (p4.Orthogonal, {"block": -1}, "`block` must be an integer from 1 to n = 6, or 'all', got -1"),
        (p4.Orthogonal, {"block": 2.0}, "`block` must be an integer from 1 to n = 6, or 'all', got 2.0"),
        (p4.Orthogonal, {"block": True}, "`block` must be an integer from 1 to n = 6, or 'all', got True"),
        (p4.Orthogonal, {"block": "half"}, "`block` must be an integer from 1 to n = 6, or 'all', got 'half'"),
        (p4.Symplectic, {"block": 3}, "`block` must be an even number from 2 to n = 6, or 'all', got 3"),
        (p4.UnitDeterminant, {"block": 1}, "`block` must be an integer from 2 to n = 6, or 'all', got 1"),
        (p4.Orthogonal, {"block": 2, "side": "top"}, "`side` must be left, right or both, got 'top'"),
        (p4.Orthogonal, {"block": 2, "scale": 0.0}, "`scale` must be None or a positive number, got 0.0"),
        (p4.Orthogonal, {"block": 2, "rank": 1}, "`rank, block` must be one of them at most, got rank=1 and block=2"),
        (p4.Orthogonal, {"rank": 1, "side": "left"}, "`side` must be None, unless `block` is given, got 'left'"),
        (p4.Orthogonal, {"block": 2, "directions": "gradient"}, "`directions` must be 'random', unless `rank` is"),
        (p4.Orthogonal, {"train_directions": False}, "`train_directions` must be True, unless `rank` is given"),
        (
            p4.Invertible,
            {"block": 2, "max_update_norm": 1.0},
            "`max_update_norm` must be None, unless `rank` is given, got 1.0",
        ),
        (p4.Invertible, {"loss_on": "inverse"}, "`loss_on` must be 'forward', unless `rank` is given, got 'inverse'"),
        (p4.PositiveDefinite, {"side": "left"}, "`side` must be None: B acts on the factor, got 'left'"),
        (p4.FixedSpectrum, {"side": "both"}, "`side` must be None: B acts on both, as T and T⁻¹, got 'both'"),
        (p4.FixedSingularValues, {"rank": 1}, "`rank` must be None: FixedSingularValues has block shapes only, got 1"),
        (p4.LowRankUpdate, {"block": 2}, "`block` must be given with a property that a group acts on: Fixed"),
        (p4.SpectralBound, {"block": 2}, "Invertible, Orthogonal, .* Unitary, got 2 with SpectralBound"),
        (p4.Stochastic, {"block": "all"}, "`block` must be given with a property .*, got 'all' with Stochastic"),
        (p4.Nonnegative, {"block": 2}, "`block` must be given with a property .*, got 2 with Nonnegative"),
        (p4.FixedRank, {"rank": 2, "block": 2}, "`block` must be given with a property .*, got 2 with FixedRank"),
        (p4.LinearSubspace, {"kind": "symmetric", "block": 2}, "got 2 with LinearSubspace"),
    ],
)
def test_bad_options(property: Any, options: dict[str, Any], message: str) -> None:
    layer = nn.Linear(6, 6)
    nn.init.eye_(layer.weight)
    with pytest.raises(p4.ArgumentError, match=message):
        p4.perturb(layer, "weight", property, **options)
    assert type(layer) is nn.Linear


def test_bad_options_of_complex_matrices() -> None:
    with pytest.raises(p4.ArgumentError, match="`block` must be an integer from 2 to n = 3, or 'all', got 1"):
        p4.SpecialUnitary(torch.eye(3, dtype=torch.complex64), block=1)


def test_defaults() -> None:
    for n, block in ((ALL_SIZE, ALL_SIZE), (ALL_SIZE + 2, DEFAULT_BLOCK)):
        assert p4.Orthogonal(torch.eye(n)).right.shape == (n // block, block, block)  # type: ignore[union-attr]
    tall, wide = p4.Orthogonal(torch.eye(5, 3)), p4.Orthogonal(torch.eye(3, 5))
    assert (tall.side, wide.side) == ("left", "right")  # type: ignore[union-attr]
    assert p4.FixedSingularValues(torch.eye(3)).side == "both"  # type: ignore[union-attr]
    assert p4.Orthogonal(torch.eye(6), block=np.int64(4)).right.shape == (1, 4, 4)  # type: ignore[union-attr]


def test_repr_tells_the_options() -> None:
    text = repr(p4.Orthogonal(torch.eye(6), block=4, side="both", scale=0.5))
    assert "BlockOrthogonal" in text and "block=4, side='both', scale=0.5" in text


# --- R_B ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_blocks_of_drawn_coordinates(side: str) -> None:
    """The rest, 2 of 6 coordinates, stays as it is."""
    base = orthogonal(6, 6)
    perturbation = moved(base, block=4, side=side)
    perturbation.reset(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for value in perturbation.parameters(recurse=False):
            value.copy_(torch.randn_like(value))
    expected = base
    for name in ("left", "right"):
        if getattr(perturbation, name) is not None:
            order = getattr(perturbation, f"{name}_order")[0]
            whole = torch.eye(6, dtype=torch.float64)
            whole[order[:4, None], order[:4]] = perturbation.element(name).blocks[0]
            expected = whole @ expected if name == "left" else expected @ whole
    torch.testing.assert_close(perturbation(base), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("rows", [4, 600])
def test_activations_or_the_matrix_are_moved(rows: int, side: str) -> None:
    """Few rows or many: with the same result and gradients."""
    x, bias = torch.randn(rows, 64, dtype=torch.float64, requires_grad=True), torch.randn(64, dtype=torch.float64)
    base = orthogonal(64, 64)
    perturbation = moved(base, block=16, side=side)
    assert perturbation._dense_is_cheaper(base, x) is (rows == 600)
    b = (x, *perturbation.parameters(recurse=False))
    got, expected = perturbation.affine(base, x, bias), x @ perturbation(base).mT + bias
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)
    weight = torch.randn_like(got)
    gradients = [torch.autograd.grad((y * weight).sum(), b) for y in (got, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=EXACT * 1e2)


def test_definite_weights_are_exactly_symmetric() -> None:
    root = torch.randn(40, 40)
    base = torch.eye(40) + root @ root.mT / 40
    base = (base + base.mT) / 2
    for options in ({}, {"block": 7}):
        perturbation = moved(base, 0.1, p4.PositiveDefinite, **options)
        for _ in range(3):
            weight = perturbation(base)
            assert torch.equal(weight, weight.mT)
            assert torch.equal(perturbation.inverse(base), perturbation.inverse(base).mT)
            assert perturbation.merge(base).ok and torch.equal(base, base.mT)


# --- the order of the coordinates -----------------------------------------------------------------------------------


def test_an_order_is_a_permutation_and_its_inverse() -> None:
    base = torch.eye(7).expand(2, 7, 7).contiguous()
    perturbation: Any = p4.Orthogonal(base, block=2)
    assert torch.equal(perturbation.right_order, torch.arange(7).expand(2, 2, 7))
    perturbation.reset(torch.Generator().manual_seed(0))
    first, second = perturbation.right_order.unbind(-2)
    assert torch.equal(first.gather(-1, second), torch.arange(7).expand(2, 7))
    assert not torch.equal(first[0], first[1])  # each matrix of a stack has its own


def test_symplectic_blocks_hold_pairs() -> None:
    perturbation: Any = p4.Symplectic(torch.eye(12), block=4)
    perturbation.reset(torch.Generator().manual_seed(0))
    for block in perturbation.right_order[0].view(3, 4):
        assert torch.equal(block[2:], block[:2] + 6)


def test_orders_are_redrawn_at_merges_as_a_function_of_their_number() -> None:
    def model() -> nn.Linear:
        layer = nn.Linear(9, 9)
        nn.init.eye_(layer.weight)
        return p4.perturb(layer, "weight", p4.Orthogonal, block=3)  # type: ignore[return-value]

    orders = []
    for consumed in (0, 10):
        torch.manual_seed(consumed)
        layer = model()
        (site,) = p4.sites(layer)
        seen = []
        for _ in range(3):
            torch.rand(consumed)
            assert site.merge(seed=5).ok
            seen.append(site.perturbation.right_order.clone())  # type: ignore[operator]
        orders.append(torch.stack(seen))
    assert torch.equal(*orders)
    assert len({tuple(order[0].tolist()) for order in orders[0]}) == 3


def test_an_order_stays_when_a_tensor_is_assigned() -> None:
    layer = nn.Linear(6, 6)
    nn.init.eye_(layer.weight)
    p4.perturb(layer, "weight", p4.Orthogonal, block=2)
    (site,) = p4.sites(layer)
    site.merge()
    before = site.perturbation.right_order.clone()  # type: ignore[operator]
    layer.weight = torch.eye(6).flip(0)
    assert torch.equal(site.perturbation.right_order, before)


def test_elements_of_a_stack_that_are_not_merged_keep_blocks_and_order() -> None:
    base = torch.eye(6, dtype=torch.float64).repeat(3, 1, 1)
    perturbation = moved(base, 0.01, p4.Invertible, block=2, bounds=p4.DeterminantBounds(change=(-1.0, 1.0)))
    with torch.no_grad():
        perturbation.right[1] = 0.5 * torch.eye(2)  # log|det| far above 1
    blocks, order, kept = perturbation.right.clone(), perturbation.right_order.clone(), base.clone()
    report = perturbation.merge(base, counter_based_generator(0, "weight", 0))
    assert (report.merged, report.skipped) == (2, 1)
    assert torch.equal(perturbation.right[1], blocks[1]) and torch.equal(perturbation.right_order[1], order[1])
    assert torch.equal(base[1], kept[1])
    for index in (0, 2):
        assert not perturbation.right[index].any() and not torch.equal(base[index], kept[index])
        assert not torch.equal(perturbation.right_order[index], order[index])


# --- long walks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"block": 16}, {"block": 16, "side": "both"}, {"block": 24, "form": "exponential"}]
)
def test_what_is_tracked_after_a_thousand_merges_in_float32(options: dict[str, Any]) -> None:
    """As good as after those of rank one."""
    base = torch.linalg.qr(torch.randn(64, 64))[0].contiguous()
    perturbation = moved(base, 0.0, p4.Invertible, **options)
    for step in range(1, 1001):
        with torch.no_grad():
            for value in perturbation.parameters(recurse=False):
                value.copy_(3e-3 * torch.randn_like(value))
        assert perturbation.merge(base, force=True).ok
        if step % 100 == 0:
            assert_tracked(perturbation, base)


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_steps_do_not_wait_for_numbers(name: str) -> None:
    """On a device without numbers: nothing is read from it, in forward and backward passes."""
    site = site_on(BLOCKS[name], element(BLOCKS[name]))
    perturbation: Any = copy.deepcopy(site.perturbation).to("meta")
    assert isinstance(perturbation, Blocks)
    base = site.base.detach().to("meta")
    x = base.new_empty(3, base.shape[-1], requires_grad=True)
    if base.dim() == 2:
        perturbation.affine(base, x, None).abs().sum().backward()
    perturbation(base).abs().sum().backward()
    for value in perturbation.parameters(recurse=False):
        assert value.grad is not None and value.grad.shape == value.shape
