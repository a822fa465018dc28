"""P4Inv: the paper's equations, its stabilisation, and what the paper leaves open."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import p4torch as p4

#: Small matrices in float64 with condition numbers up to about 1e4.
EXACT = 1e-9
#: A float32 inverse may be this many times as far off as a freshly computed one, after 10,000 merges.
WORSE_THAN_FRESH = 10
#: Allowed error of log|det| after 10,000 merges, in float32.
LOGABSDET_ERROR = 1e-3
#: Five digits.
FIVE_DIGITS = 1e-5

FORMS = ("additive", "exponential")


def regular(n: int, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.eye(n, dtype=torch.float64) + 0.3 / n**0.5 * torch.randn(*batch, n, n).double()).to(dtype)


def moved(base: Tensor, size: float = 0.3, **options: Any) -> p4.Invertible:
    perturbation = p4.Invertible(base, **options)
    with torch.no_grad():
        perturbation.u.copy_(size * torch.randn(perturbation.u.shape))
    return perturbation


# --- the formulas -----------------------------------------------------------------------------------------------


def test_rank_one_is_equations_3_and_4_of_the_paper() -> None:
    base = regular(5)
    perturbation = moved(base)
    u, v, inverse = perturbation.u[:, 0], perturbation.v[:, 0], torch.linalg.inv(base)
    factor = 1 + v @ inverse @ u
    torch.testing.assert_close(perturbation(base), base + torch.outer(u, v))
    sherman_morrison = inverse - torch.outer(inverse @ u, v @ inverse) / factor
    torch.testing.assert_close(perturbation.inverse(base), sherman_morrison, rtol=0, atol=EXACT)
    expected = torch.linalg.slogdet(base)[1] + factor.abs().log()
    torch.testing.assert_close(perturbation.logabsdet(base), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_exponential_form_is_a_times_the_exponential(rank: int) -> None:
    base = regular(5)
    perturbation = moved(base, rank=rank, form="exponential")
    exponential = torch.linalg.matrix_exp(perturbation.u @ perturbation.v.mT)
    torch.testing.assert_close(perturbation(base), base @ exponential, rtol=0, atol=EXACT)
    trace = (perturbation.v.mT @ perturbation.u).trace()
    torch.testing.assert_close(perturbation.logabsdet(base), torch.linalg.slogdet(base)[1] + trace, rtol=0, atol=EXACT)


@given(
    n=st.integers(1, 7),
    rank=st.integers(1, 3),
    form=st.sampled_from(FORMS),
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    seed=st.integers(0, 2**31),
)
def test_everything_against_lapack(n: int, rank: int, form: Any, batch: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    base = regular(n, *batch)
    perturbation = moved(base, rank=rank, form=form)
    weight = perturbation(base).detach()
    scale = float(torch.linalg.cond(weight).max()) ** 2
    x = torch.randn(*batch, 4, n, dtype=torch.float64)
    sign, logabsdet = torch.linalg.slogdet(weight)
    for got, expected in (
        (perturbation.matmul(base, x), x @ weight.mT),
        (perturbation.solve(base, x), x @ torch.linalg.inv(weight).mT),
        (perturbation.inverse(base), torch.linalg.inv(weight)),
        (perturbation.logabsdet(base), logabsdet),
        (perturbation.sign(base), sign),
    ):
        torch.testing.assert_close(got.detach(), expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6), (0, 6)])
def test_vectors_and_any_leading_shape_of_rows(form: Any, shape: tuple[int, ...]) -> None:
    base = regular(6)
    perturbation = moved(base, rank=2, form=form)
    x = torch.randn(shape, dtype=torch.float64)
    y = perturbation.matmul(base, x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, x @ perturbation(base).mT)
    torch.testing.assert_close(perturbation.solve(base, y), x)
    torch.testing.assert_close(p4.Perturbation.solve(perturbation, base, y), x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 3])
def test_double_backward_through_the_inverse(form: Any, rank: int) -> None:
    base = regular(4)
    perturbation = moved(base, rank=rank, form=form)

    def energy(u: Tensor, v: Tensor, method: str) -> Tensor:
        arguments = (torch.ones(2, 4, dtype=torch.float64),) if method == "solve" else ()
        bound = _Call(perturbation, method)
        return torch.func.functional_call(bound, {"inner.u": u, "inner.v": v}, (base, *arguments))

    for method in ("inverse", "solve", "logabsdet"):
        values = [value.detach().clone().requires_grad_() for value in (perturbation.u, perturbation.v)]
        assert torch.autograd.gradgradcheck(lambda u, v, m=method: energy(u, v, m), values)


class _Call(nn.Module):
    def __init__(self, inner: nn.Module, method: str) -> None:
        super().__init__()
        self.inner, self.method = inner, method

    def forward(self, *arguments: Tensor) -> Tensor:
        return getattr(self.inner, self.method)(*arguments)


def test_scale_is_the_length_of_the_directions() -> None:
    base = torch.eye(400)
    for scale in (1.0, 0.1):
        assert float(p4.Invertible(base, scale=scale).v.std()) == pytest.approx(scale, rel=0.2)


def test_the_exponential_form_keeps_the_sign_and_is_never_singular() -> None:
    base = regular(6)
    base[0] *= -1
    perturbation = moved(base, size=5.0, form="exponential", change_bounds=None, logabsdet_bounds=None)
    sign = perturbation.sign(base)
    assert torch.equal(sign, torch.linalg.slogdet(base)[0])
    assert bool(perturbation.logabsdet(base).isfinite())


# --- merges, bounds, residual -----------------------------------------------------------------------------------


def stretch(perturbation: p4.Invertible, base: Tensor, factor: float) -> None:
    """Choose u so that det R_B(A) / det A = factor."""
    with torch.no_grad():
        v = perturbation.v
        perturbation.u.copy_((factor - 1) * (base @ v) / v.square().sum())


@pytest.mark.parametrize("factor", [0.5, 3.0, -2.0])
def test_a_merge_updates_everything(factor: float) -> None:
    base = regular(6)
    perturbation = p4.Invertible(base)
    stretch(perturbation, base, factor)
    weight, logabsdet, sign = perturbation(base).detach(), perturbation.logabsdet(base), perturbation.sign(base)
    report = perturbation.merge(base)
    assert report.ok and report.reason is None and (report.index, report.merged, report.skipped) == (1, 1, 0)
    torch.testing.assert_close(base, weight)
    assert not perturbation.u.any()
    assert torch.equal(perturbation.sign(base), sign)
    torch.testing.assert_close(perturbation.logabsdet(base), logabsdet, rtol=0, atol=EXACT)
    torch.testing.assert_close(perturbation.inverse(base), torch.linalg.inv(weight), rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("options", "factor", "reason"),
    [
        ({}, math.exp(-6.1), "log|det R_B(A) / det A| is outside (-6.0, 15.5)"),
        ({}, math.exp(15.6), "log|det R_B(A) / det A| is outside (-6.0, 15.5)"),
        ({}, math.exp(-2.6), "log|det R_B(A)| relative to the admitted matrix is outside (-2.5, 15.5)"),
        ({"change_bounds": (-1.0, 1.0)}, math.exp(1.1), "log|det R_B(A) / det A| is outside (-1.0, 1.0)"),
        ({"logabsdet_bounds": (-1.0, 1.0)}, -math.exp(1.1), "relative to the admitted matrix is outside (-1.0, 1.0)"),
    ],
)
def test_bounds_skip_softly(options: dict[str, Any], factor: float, reason: str) -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, **options)
    stretch(perturbation, base, factor)
    before = copy.deepcopy(perturbation.state_dict())
    kept = base.clone()
    report = perturbation.merge(base)
    assert report.skipped == 1 and reason in (report.reason or "")
    assert torch.equal(base, kept)
    for name, value in perturbation.state_dict().items():
        assert name in ("skips", "attempts") or torch.equal(value, before[name]), name
    assert perturbation.merge(base, force=True).ok


def test_bounds_are_relative_to_the_admitted_matrix() -> None:
    base = 1e-3 * torch.eye(6, dtype=torch.float64)
    perturbation = p4.Invertible(base)
    stretch(perturbation, base, 0.9)
    assert perturbation.merge(base).ok


def test_every_tenth_attempt_is_forced() -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, force_every=10)
    stretch(perturbation, base, math.exp(-4))
    outcome = [perturbation.merge(base).ok for _ in range(10)]
    assert outcome == [False] * 9 + [True]
    stretch(perturbation, base, math.exp(-4))
    assert not perturbation.merge(base).ok  # counting starts again


def test_force_every_zero_never_forces() -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, force_every=0)
    stretch(perturbation, base, math.exp(-4))
    assert not any(perturbation.merge(base).ok for _ in range(25))


def test_no_bounds_no_skips() -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, change_bounds=None, logabsdet_bounds=None)
    stretch(perturbation, base, math.exp(-12))
    assert perturbation.merge(base).ok
    assert perturbation.penalty(base) == 0


@pytest.mark.parametrize("distance", [0.0, 1e-9])
def test_a_singular_update_is_never_merged(distance: float) -> None:
    base = regular(6, dtype=torch.float32)
    perturbation = p4.Invertible(base, change_bounds=None, logabsdet_bounds=None)
    stretch(perturbation, base, distance)
    kept, inverse = base.clone(), perturbation.tracked.inverse.clone()
    for _ in range(25):
        report = perturbation.merge(base, force=True)
        assert report.skipped == 1
        assert "singular" in (report.reason or "")
    assert torch.equal(base, kept) and torch.equal(perturbation.tracked.inverse, inverse)


def test_the_residual_gates_merges() -> None:
    base = regular(6, dtype=torch.float32)
    perturbation = moved(base, residual_bound=1e-12)
    report = perturbation.merge(base, force=True)
    assert report.skipped == 1 and "residual is above 1e-12" in (report.reason or "")


def test_penalty_is_the_squared_hinge() -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, change_bounds=(-1.0, 1.0), logabsdet_bounds=(-2.0, 2.0), penalty_weight=0.5)
    stretch(perturbation, base, math.exp(0.9))
    assert perturbation.penalty(base) == 0
    stretch(perturbation, base, math.exp(-2.5))
    expected = 0.5 * (1.5**2 + 0.5**2)
    assert float(perturbation.penalty(base)) == pytest.approx(expected)
    (slope,) = torch.autograd.grad(perturbation.penalty(base), perturbation.u)
    assert slope.any()


def test_penalty_keeps_a_layer_from_crossing() -> None:
    """The companion paper: with a penalty the singular set is not crossed."""
    torch.manual_seed(0)
    layer = p4.perturb(_linear(torch.eye(3)), "weight", p4.Invertible, change_bounds=(-1.0, 1.0))
    optimizer = torch.optim.SGD(p4.parameter_groups(layer)[1:], lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=5)
    for _ in range(500):
        x = torch.randn(32, 3)
        loss = (layer(x) + x).square().mean() + 100 * p4.penalty(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    (site,) = p4.sites(layer)
    assert site.perturbation.sign(site.base) == 1


# --- long walks -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("size", "force"), [(0.1, False), (1.0, False), (0.1, True)])
def test_ten_thousand_merges_in_float32(size: float, force: bool) -> None:
    """With the defaults most merges of a random walk hit the bounds and are skipped; so another walk ignores them."""
    n, merges, generator = 64, 10_000, torch.Generator().manual_seed(1)
    base = torch.linalg.qr(torch.randn(n, n, generator=generator))[0].contiguous()
    perturbation = p4.Invertible(base)
    merged = 0
    for step in range(1, merges + 1):
        with torch.no_grad():
            perturbation.u.copy_(size * torch.randn(n, 1, generator=generator))
        merged += perturbation.merge(base, generator, force=force).merged
        if step % 250 == 0:
            _assert_tracked(perturbation, base)
    assert merged >= (0.99 if force else 0.09) * merges


def _assert_tracked(perturbation: p4.Invertible, base: Tensor) -> None:
    exact, eye = base.double(), torch.eye(base.shape[-1], dtype=torch.float64)
    residual = (exact @ perturbation.tracked.inverse.double() - eye).abs().max()
    fresh = (exact @ torch.linalg.inv(base).double() - eye).abs().max()
    sign, logabsdet = torch.linalg.slogdet(exact)
    assert residual <= WORSE_THAN_FRESH * fresh
    assert (perturbation.tracked.logabsdet - logabsdet).abs() <= LOGABSDET_ERROR
    assert perturbation.tracked.sign == sign


def test_a_thousand_merges_in_float32() -> None:
    """The same at a length that runs every time; the original's residual was 1.0 here."""
    base = torch.linalg.qr(torch.randn(64, 64))[0].contiguous()
    perturbation = p4.Invertible(base)
    for step in range(1, 1001):
        with torch.no_grad():
            perturbation.u.copy_(0.1 * torch.randn(64, 1))
        perturbation.merge(base, force=True)
        if step % 100 == 0:
            _assert_tracked(perturbation, base)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


# --- dtypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_autocast_in_bfloat16(form: Any) -> None:
    base = regular(16, dtype=torch.float32)
    perturbation = moved(base, rank=2, size=0.1, form=form)
    x = torch.randn(4, 16)
    exact = copy.deepcopy(perturbation).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, back = perturbation.matmul(base, x), perturbation.solve(base, x)
        logabsdet, inverse, weight = perturbation.logabsdet(base), perturbation.inverse(base), perturbation(base)
    (y.float().sum() + back.float().sum() + logabsdet + inverse.sum() + weight.float().sum()).backward()
    assert all(bool(value.grad.isfinite().all()) for value in (perturbation.u, perturbation.v))
    assert logabsdet.dtype == torch.float32
    full = 1e-5  # float32, not bfloat16 with its 3e-3
    torch.testing.assert_close(logabsdet.detach().double(), exact.logabsdet(base.double()).detach(), rtol=0, atol=full)
    torch.testing.assert_close(inverse.double(), exact.inverse(base.double()), rtol=0, atol=10 * full)
    bfloat16 = 0.1
    torch.testing.assert_close(y.double(), exact.matmul(base.double(), x.double()), rtol=bfloat16, atol=bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert perturbation.merge(base, force=True).ok
    _assert_tracked(perturbation, base)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(form: Any, dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 8).to(dtype)
    nn.init.eye_(layer.weight)
    p4.perturb(layer, "weight", p4.Invertible, rank=2, form=form)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=2)
    (site,) = p4.sites(layer)
    for _ in range(6):
        optimizer.zero_grad()
        x = torch.randn(4, 8, dtype=dtype)
        perturbation: Any = site.perturbation
        loss = layer(x).square().mean() - perturbation.logabsdet(site.base)
        loss = loss + perturbation.solve(site.base, x).square().mean() + perturbation.inverse(site.base).mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert scheduler.merged == 3
    weight = site.base.double()
    assert site.perturbation.tracked.logabsdet.dtype == torch.float64  # type: ignore[union-attr]
    assert float(site.perturbation.logabsdet(site.base)) == pytest.approx(
        float(torch.linalg.slogdet(weight)[1]), abs=torch.finfo(dtype).eps
    )


@pytest.mark.parametrize(
    "move", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float(), lambda m: m.double()]
)
def test_a_change_of_dtype_keeps_scalars_exact(move: Callable[[nn.Module], nn.Module]) -> None:
    layer = p4.perturb(_linear(regular(6)).double(), "weight", p4.Invertible)
    move(layer)
    (site,) = p4.sites(layer)
    tracked: Any = site.perturbation.tracked  # type: ignore[union-attr]
    assert tracked.logabsdet.dtype == tracked.sign.dtype == torch.float64
    site.perturbation.logabsdet(site.base)
    exact = torch.linalg.slogdet(site.base.double())[1]
    torch.testing.assert_close(tracked.logabsdet, exact, rtol=0, atol=EXACT)


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.ones(3, 4), {}, r"`base` must be square, \(..., n, n\), got \(3, 4\)"),
        (torch.ones(3), {}, r"`base` must be of at least 2 dimensions, got \(3,\)"),
        (torch.ones(3, 3), {}, "`base` must be nonsingular, got 1 singular of 1 matrices"),
        (torch.stack([torch.eye(2), torch.zeros(2, 2)]), {}, "got 1 singular of 2 matrices"),
        (torch.ones(0, 0), {}, "`base` must be at least 1 x 1"),
        (torch.full((2, 2), torch.nan), {}, "`base` must be finite, got 4 non-finite entries of 4"),
        (torch.eye(2, dtype=torch.int32), {}, "`base` must be of a floating-point dtype, got torch.int32"),
        (torch.eye(2, dtype=torch.complex64), {}, "`base` must be real, got torch.complex64"),
        (torch.eye(2), {"rank": 0}, "`rank` must be an integer >= 1, got 0"),
        (torch.eye(2), {"rank": -1}, "`rank` must be an integer >= 1, got -1"),
        (torch.eye(2), {"rank": 1.5}, "`rank` must be an integer >= 1, got 1.5"),
        (torch.eye(2), {"rank": True}, "`rank` must be an integer >= 1, got True"),
        (torch.eye(2), {"form": "cayley"}, "`form` must be one of additive, exponential, got 'cayley'"),
        (torch.eye(2), {"scale": 0.0}, "`scale` must be a positive number, got 0.0"),
        (torch.eye(2), {"scale": math.nan}, "`scale` must be a positive number, got nan"),
        (torch.eye(2), {"order": 4}, "`order` must be 2, 3 or 7, got 4"),
        (torch.eye(2), {"change_bounds": (1.0, 2.0)}, "`change_bounds` must be None or"),
        (torch.eye(2), {"logabsdet_bounds": (-2.0, -1.0)}, "`logabsdet_bounds` must be None or"),
    ],
)
def test_bad_input(base: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.Invertible(base, **options)


def test_a_singular_matrix_is_not_admitted() -> None:
    layer = p4.perturb(_linear(torch.eye(3)), "weight", p4.Invertible)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for bad, message in ((torch.ones(3, 3), "nonsingular"), (torch.full((3, 3), torch.inf), "finite")):
        with pytest.raises(p4.ArgumentError, match=message):
            layer.weight = bad
        for name, value in layer.state_dict().items():
            assert torch.equal(value, before[name])


def test_assignment_admits_a_new_matrix() -> None:
    layer = p4.perturb(_linear(torch.eye(3)), "weight", p4.Invertible)
    (site,) = p4.sites(layer)
    with torch.no_grad():
        site.perturbation.u.fill_(0.1)  # type: ignore[union-attr]
    directions = site.perturbation.v.clone()  # type: ignore[union-attr]
    new = -2 * torch.eye(3)
    layer.weight = new
    assert torch.equal(layer.weight, new)
    assert torch.equal(site.perturbation.v, directions)  # type: ignore[union-attr]
    assert site.perturbation.sign(site.base) == -1
    assert float(site.perturbation.logabsdet(site.base)) == pytest.approx(3 * math.log(2))


def test_repr_tells_the_options() -> None:
    assert "rank=2, form='exponential'" in repr(p4.Invertible(torch.eye(3), rank=2, form="exponential"))


@pytest.mark.parametrize(("n", "expected"), [(2, (-2.5, 15.5)), (64, (-2.5, 15.5)), (256, (-10.0, 62.0))])
def test_default_bounds_grow_with_the_number_of_singular_values(n: int, expected: tuple[float, float]) -> None:
    assert p4.Invertible(torch.eye(n)).logabsdet_bounds == expected
    assert p4.Invertible(torch.eye(n), logabsdet_bounds=None).logabsdet_bounds is None
