"""What is tracked beside a base stays right, in every dtype and through every merge."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import p4torch as p4
from p4torch.linalg import drift
from p4torch.linalg.tracked_inverse import TrackedInverse

#: Small well-conditioned matrices in float64.
EXACT = 1e-12
#: What log|det| may be wrong by after thousands of float32 merges, in nats.
LOGABSDET_DRIFT = 1e-3

#: A column that was corrected keeps no more than this part of its error.
SMALL_PART = 0.05
#: What a step of second order leaves of an error of 1e-2 in each entry of a 6 x 6 inverse.
SECOND_ORDER = 1e-2


def base_of(n: int = 6, *batch: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64) + 0.3 * torch.randn(*batch, n, n, dtype=torch.float64) / n**0.5


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_refresh_is_exact(batch: tuple[int, ...]) -> None:
    base = base_of(6, *batch)
    tracked = TrackedInverse(base)
    sign, logabsdet = torch.linalg.slogdet(base)
    torch.testing.assert_close(tracked.inverse.detach(), torch.linalg.inv(base), rtol=0, atol=EXACT)
    torch.testing.assert_close(tracked.logabsdet, logabsdet, rtol=0, atol=EXACT)
    assert torch.equal(tracked.sign, sign)


def test_scalars_stay_in_float64() -> None:
    tracked = TrackedInverse(base_of())
    exact = tracked.logabsdet.clone()
    for move in (
        lambda: tracked.half(),
        lambda: tracked.bfloat16(),
        lambda: tracked.float(),
        lambda: tracked.to(torch.float16),
        lambda: tracked.double(),
        lambda: tracked.to("cpu"),
    ):
        move()
        assert tracked.logabsdet.dtype == tracked.sign.dtype == torch.float64
        assert torch.equal(tracked.logabsdet, exact)
    assert tracked.half().inverse.dtype == torch.float16


def test_to_meta_and_back() -> None:
    tracked = TrackedInverse(base_of()).to("meta").half()
    assert tracked.logabsdet.dtype == torch.float64
    assert tracked.to_empty(device="cpu").logabsdet.dtype == torch.float64


def test_a_checkpoint_of_the_same_dtype_is_taken_as_it_is() -> None:
    """Also by a model that has just changed its dtype: a resume is exact."""
    base = base_of()
    saved = TrackedInverse(base)
    saved.inverse.mul_(1 + EXACT)  # as merges left it, not as LAPACK has it
    resumed = TrackedInverse(base.float()).double()
    resumed.load_state_dict(saved.state_dict())
    assert not resumed.stale
    assert torch.equal(resumed.current(base).inverse, saved.inverse)


def test_what_a_change_of_dtype_left_stale_is_so_after_saving() -> None:
    base = base_of().float()
    saved = TrackedInverse(base).double()
    for resumed in (TrackedInverse(base.double()), TrackedInverse(base).double()):
        resumed.load_state_dict(saved.state_dict())
        inverse, sign = resumed.current(base.double()).inverse, resumed.sign
        torch.testing.assert_close(inverse @ base.double(), torch.eye(6).double(), rtol=0, atol=EXACT)
        assert sign == torch.linalg.slogdet(base)[0]
    single = TrackedInverse(base)
    single.load_state_dict(TrackedInverse(base.double()).state_dict())
    again = TrackedInverse(base)
    again.load_state_dict(single.state_dict())
    assert single.stale and again.stale


def test_staleness_needs_no_values() -> None:
    tracked = TrackedInverse(base_of()).to("meta").float()
    assert tracked.stale and tracked.sign.is_meta


def test_nothing_trains_and_nothing_is_broadcast() -> None:
    tracked = TrackedInverse(base_of())
    assert not tracked.inverse.requires_grad
    assert dict(tracked.named_buffers()).keys() == {"logabsdet", "sign", "admitted"}
    assert all(value.numel() == 1 for value in tracked.buffers())
    copy.deepcopy(tracked)


def test_correction_converges_or_is_exact() -> None:
    base = base_of()
    for error in (1e-3, 1e3):
        tracked = TrackedInverse(base)
        with torch.no_grad():
            tracked.inverse.add_(error * torch.randn_like(tracked.inverse))
        tracked.correct(base, order=7)
        torch.testing.assert_close(tracked.inverse.detach(), torch.linalg.inv(base), rtol=0, atol=EXACT)


def test_correction_of_a_stack_repairs_each_its_own_way() -> None:
    base = base_of(6, 3)
    tracked = TrackedInverse(base)
    with torch.no_grad():
        tracked.inverse[1].add_(torch.randn(6, 6), alpha=1e3)
        tracked.inverse[2].fill_(torch.nan)
    tracked.correct(base, order=2)
    torch.testing.assert_close(tracked.inverse.detach(), torch.linalg.inv(base), rtol=0, atol=EXACT)


def test_a_correction_leaves_the_inverse_of_a_singular_base_alone() -> None:
    tracked = TrackedInverse(base_of())
    before = tracked.inverse.detach().clone()
    tracked.correct(torch.zeros(6, 6, dtype=torch.float64), order=7)
    assert bool(tracked.inverse.isfinite().all())
    assert before.shape == tracked.inverse.shape


@pytest.mark.parametrize("rank", [1, 3])
def test_an_update_is_what_lapack_says(rank: int) -> None:
    base = base_of(6, 2)
    tracked = TrackedInverse(base)
    u, v = 0.5 * torch.randn(2, 6, rank).double(), torch.randn(2, 6, rank).double()
    update = tracked.propose(base, u, v, order=7)
    exact = base + u @ v.mT
    sign, logabsdet = torch.linalg.slogdet(exact)
    scale = float(torch.linalg.cond(exact).max())
    torch.testing.assert_close(update.base, exact, rtol=0, atol=EXACT)
    torch.testing.assert_close(update.inverse, torch.linalg.inv(exact), rtol=0, atol=EXACT * scale**2)
    torch.testing.assert_close(update.logabsdet, logabsdet, rtol=0, atol=EXACT * scale)
    assert torch.equal(update.sign, sign)


def test_a_proposal_changes_nothing() -> None:
    base = base_of()
    tracked = TrackedInverse(base)
    before = {name: value.clone() for name, value in tracked.state_dict().items()}
    tracked.propose(base, torch.randn(6, 1).double(), torch.randn(6, 1).double(), order=7)
    for name, value in tracked.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_drifted_inverse_is_corrected_at_once() -> None:
    base = base_of().float()
    tracked = TrackedInverse(base)
    with torch.no_grad():
        tracked.inverse.add_(torch.randn_like(tracked.inverse), alpha=1e-3)
    u, v = 0.1 * torch.randn(6, 1), torch.randn(6, 1)
    update = tracked.propose(base, u, v, order=7)
    assert update.base.dtype == update.inverse.dtype == torch.float32
    stored, identity = update.base.double(), torch.eye(6, dtype=torch.float64)
    residual = float((stored @ update.inverse.double() - identity).abs().max())
    fresh = torch.linalg.inv(stored).float().double()
    assert residual <= 2 * float((stored @ fresh - identity).abs().max())
    # the determinant is that of the base as stored, rounding and all
    exact = torch.linalg.slogdet(stored)[1]
    torch.testing.assert_close(update.logabsdet, exact, rtol=0, atol=1e-9)


def test_turns_bring_all_columns_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors too small to be drift are corrected a few columns at a time, also where few turns are merges."""
    n, every = 96, 10
    monkeypatch.setattr(drift, "DRIFT", 1e6)
    base = base_of(n).float()
    tracked = TrackedInverse(base)
    exact = torch.linalg.inv(base.double())
    with torch.no_grad():
        tracked.inverse.add_(torch.randn_like(tracked.inverse), alpha=1e-5)
    nothing = torch.zeros(n, 1, dtype=torch.float64)
    before = (tracked.inverse.double() - exact).norm(dim=0)
    for turn in range(0, 3 * every * n // drift.PART, every):
        with torch.no_grad():
            tracked.inverse.copy_(tracked.propose(base, nothing, nothing, 7, turn).inverse)
    after = (tracked.inverse.double() - exact).norm(dim=0)
    assert bool((after <= SMALL_PART * before).all())


def test_a_correction_of_what_has_not_drifted_changes_nothing() -> None:
    base = base_of(6, 2).float()
    tracked = TrackedInverse(base)
    tracked.logabsdet.add_(LOGABSDET_DRIFT)
    before = {name: value.clone() for name, value in tracked.state_dict().items()}
    tracked.correct(base, order=7)
    for name, value in tracked.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_correction_of_a_stack_leaves_the_others_alone() -> None:
    base = base_of(6, 2).float()
    tracked = TrackedInverse(base)
    with torch.no_grad():
        tracked.inverse[1].add_(1e-2)
    before = {name: value.clone() for name, value in tracked.state_dict().items()}
    tracked.correct(base, order=2)
    for name, value in tracked.state_dict().items():
        assert torch.equal(value[0], before[name][0])
    torch.testing.assert_close(
        tracked.inverse[1].double(), torch.linalg.inv(base[1].double()), rtol=0, atol=SECOND_ORDER
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_update_in_half_precision(dtype: torch.dtype) -> None:
    base = base_of(6, 2).to(dtype)
    tracked = TrackedInverse(base)
    u, v = 0.1 * torch.randn(2, 6, 2), torch.randn(2, 6, 2)
    update = tracked.propose(base, u, v, order=7)
    assert torch.equal(update.base, (base.double() + u.double() @ v.double().mT).to(dtype))
    exact = torch.linalg.slogdet(update.base.double())[1]
    torch.testing.assert_close(update.logabsdet, exact, rtol=0, atol=LOGABSDET_DRIFT)


@pytest.mark.parametrize(("n", "form"), [(2, "exponential"), (8, "exponential"), (3, "additive"), (16, "additive")])
def test_logabsdet_does_not_drift_where_matrices_are_badly_conditioned(n: int, form: Any) -> None:
    """Walks that reach condition numbers near 1 / eps, where first-order corrections and refined solves fail."""
    generator = torch.Generator().manual_seed(n)
    wide = p4.DeterminantBounds(change=(-9.2, 9.2), force_every=0)
    base = torch.eye(n)
    perturbation = p4.Invertible(base, rank=1, scale=1.0, form=form, bounds=wide if form == "additive" else "paper")
    worst = 0.0
    for index in range(1500):
        with torch.no_grad():
            size = 0.3 if form == "exponential" else 10 ** float(2 * torch.rand((), generator=generator) - 1)
            perturbation.u.copy_(size * torch.randn(n, 1, generator=generator))
        perturbation.merge(base, generator)
        if index % 10 == 0:
            exact = torch.linalg.slogdet(base.double())[1]
            worst = max(worst, abs(float(perturbation.tracked.logabsdet - exact)))
    assert worst <= LOGABSDET_DRIFT
