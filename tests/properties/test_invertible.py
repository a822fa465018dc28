"""P4Inv: the paper's equations, its stabilisation, and what the paper leaves open."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import p4torch as p4

#: A float32 inverse may be this many times as far off as a freshly computed one, after 10,000 merges.
WORSE_THAN_FRESH = 10
#: Allowed error of log|det| after 10,000 merges, in float32.
LOGABSDET_ERROR = 1e-3
#: Small matrices in float64 with condition numbers up to about 1e4.
EXACT = 1e-9
#: Five digits.
FIVE_DIGITS = 1e-5

FORMS = ("additive", "exponential")


def regular(n: int, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.eye(n, dtype=torch.float64) + 0.3 / n**0.5 * torch.randn(*batch, n, n).double()).to(dtype)


def moved(base: Tensor, size: float = 0.3, **options: Any) -> p4.Invertible:
    """Of rank one unless `rank` says otherwise, with g = 1."""
    perturbation = p4.Invertible(base, **{"rank": 1, "scale": 1.0} | options)
    with torch.no_grad():
        perturbation.u.copy_(size * torch.randn(perturbation.u.shape))
    return perturbation


def linear_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def assert_tracked(perturbation: p4.Invertible, base: Tensor) -> None:
    exact, eye = base.double(), torch.eye(base.shape[-1], dtype=torch.float64)
    residual = (exact @ perturbation.tracked.inverse.double() - eye).abs().max()
    fresh = (exact @ torch.linalg.inv(base).double() - eye).abs().max()
    sign, logabsdet = torch.linalg.slogdet(exact)
    assert residual <= WORSE_THAN_FRESH * fresh
    assert (perturbation.tracked.logabsdet - logabsdet).abs() <= LOGABSDET_ERROR
    assert perturbation.tracked.sign == sign


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
    perturbation = moved(base, rank=min(rank, n), form=form)
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


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_scale_is_the_gain_of_u(scale: float) -> None:
    base = regular(5)
    perturbation = moved(base, rank=2, scale=scale)
    expected = base + scale * perturbation.u @ perturbation.v.mT
    torch.testing.assert_close(perturbation(base), expected, rtol=0, atol=EXACT)


def test_the_exponential_form_keeps_the_sign_and_is_never_singular() -> None:
    base = regular(6)
    base[0] *= -1
    perturbation = moved(base, size=5.0, form="exponential")
    sign = perturbation.sign(base)
    assert torch.equal(sign, torch.linalg.slogdet(base)[0])
    assert bool(perturbation.logabsdet(base).isfinite())


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
    assert_tracked(perturbation, base)


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
    layer = p4.perturb(linear_of(regular(6)).double(), "weight", p4.Invertible)
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
        (torch.ones(3, 3), {}, "`base` must be nonsingular, got 1 singular to working precision of 1 matrices"),
        (torch.stack([torch.eye(2), torch.zeros(2, 2)]), {}, "got 1 singular to working precision of 2 matrices"),
        (torch.ones(0, 0), {}, "`base` must be not empty"),
        (torch.full((2, 2), torch.nan), {}, "`base` must be finite, got 4 non-finite entries of 4"),
        (torch.eye(2, dtype=torch.int32), {}, "`base` must be of a floating-point dtype, got torch.int32"),
        (torch.eye(2, dtype=torch.complex64), {}, "`base` must be real, got torch.complex64"),
        (torch.eye(2), {"rank": 0}, "`rank` must be an integer >= 1, got 0"),
        (torch.eye(2), {"rank": -1}, "`rank` must be an integer >= 1, got -1"),
        (torch.eye(2), {"rank": 1.5}, "`rank` must be an integer >= 1, got 1.5"),
        (torch.eye(2), {"rank": True}, "`rank` must be an integer >= 1, got True"),
        (torch.eye(2), {"form": "cayley"}, "`form` must be one of relative, exponential, triangular, got 'cayley'"),
        (torch.eye(2), {"form": "relative", "rank": 1}, "`form` must be one of additive, exponential, got 'relative'"),
        (torch.eye(2), {"form": "additive", "block": 1}, "`form` must be relative, exponential or tri"),
        (torch.eye(2), {"form": "additive", "side": "left"}, "`form` must be relative, exponential or tri"),
        (torch.eye(2), {"form": "triangular", "side": "both"}, "`side` must be None: triangular factors act"),
        (torch.eye(2), {"scale": 0.0}, "`scale` must be None or a positive number, got 0.0"),
        (torch.eye(2), {"scale": math.nan}, "`scale` must be None or a positive number, got nan"),
        (torch.eye(2), {"bounds": (1.0, 2.0)}, "`bounds` must be None, 'paper' or a p4torch.DeterminantBounds"),
    ],
)
def test_bad_input(base: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.Invertible(base, **options)


def test_a_singular_matrix_is_not_admitted() -> None:
    layer = p4.perturb(linear_of(torch.eye(3)), "weight", p4.Invertible)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for bad, message in ((torch.ones(3, 3), "nonsingular"), (torch.full((3, 3), torch.inf), "finite")):
        with pytest.raises(p4.ArgumentError, match=message):
            layer.weight = bad
        for name, value in layer.state_dict().items():
            assert torch.equal(value, before[name])


def test_assignment_admits_a_new_matrix() -> None:
    layer = p4.perturb(linear_of(torch.eye(3)), "weight", p4.Invertible, rank=1)
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
    assert "form='exponential', rank=2" in repr(p4.Invertible(torch.eye(3), rank=2, form="exponential"))


@pytest.mark.parametrize(("n", "expected"), [(2, (-2.5, 15.5)), (64, (-2.5, 15.5)), (256, (-10.0, 62.0))])
def test_the_papers_bounds_grow_with_the_number_of_singular_values(n: int, expected: tuple[float, float]) -> None:
    bounds = p4.Invertible(torch.eye(n), bounds="paper").bounds
    assert (bounds.change, bounds.total) == ((-6.0, 15.5), expected)


def test_there_are_no_bounds_unless_asked_for() -> None:
    bounds = p4.Invertible(torch.eye(3)).bounds
    assert bounds.change is None and bounds.total is None


@pytest.mark.parametrize(("name", "value"), [("change", (1.0, 2.0)), ("total", (-2.0, -1.0)), ("total", "paper")])
def test_bounds_are_two_numbers_around_zero(name: str, value: Any) -> None:
    with pytest.raises(p4.ArgumentError, match=f"`{name}` must be None or"):
        p4.DeterminantBounds(**{name: value})


@pytest.mark.parametrize("old", ["through", "growth", "change_bounds", "logabsdet_bounds", "force_every"])
def test_old_names_of_options_say_the_new_ones(old: str) -> None:
    with pytest.raises(TypeError, match=f"`{old}` is now `"):
        p4.Invertible(torch.eye(3), **{old: 1})
