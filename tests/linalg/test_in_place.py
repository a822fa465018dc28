"""Merges in place: what they decide before they write is what they then have written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import p4torch as p4
from p4torch.linalg.in_place import in_place_update
from p4torch.linalg.tracked_inverse import CLOSE, TrackedInverse

#: log|det K| from an inverse in float32, refined once: the square of its residual.
REFINED = 1e-9
#: A float32 matrix after one rounded update, its entries around 1.
ROUNDED = 1e-6
#: The residual of an inverse after many merges, in residuals of a fresh one: half of what the project promises.
FRESH = 15
N, RANK = 96, 3


def case(batch: tuple[int, ...] = ()) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    base = (torch.eye(N, dtype=torch.float64) + 0.3 / N**0.5 * normal(N, N)).float()
    u, v = (0.005 * normal(N, RANK)).float().double(), normal(N, RANK).float().double()
    probes = torch.randint(0, 2, (N, 2), generator=generator).double() * 2 - 1
    return base, torch.linalg.inv(base.double()).float(), u, v, probes


@pytest.mark.parametrize("batch", [(), (2,)])
def test_decides_what_it_writes(batch: tuple[int, ...]) -> None:
    base, inverse, u, v, probes = case(batch)
    part = slice(16, 32)
    found = in_place_update(base, inverse, u, v, probes, part)
    assert found is not None
    exact = base.double() + u @ v.mT
    sign, logabsdet = torch.linalg.slogdet(exact)
    before = torch.linalg.slogdet(base.double())
    torch.testing.assert_close(found.change, logabsdet - before[1], rtol=REFINED, atol=REFINED)
    assert torch.equal(found.sign, sign * before[0])
    found.write(base, inverse, torch.ones(batch, dtype=torch.bool))
    torch.testing.assert_close(base, exact.float(), rtol=ROUNDED, atol=ROUNDED)
    torch.testing.assert_close(inverse, torch.linalg.inv(exact).float(), rtol=ROUNDED, atol=ROUNDED)


def test_columns_in_turn_are_corrected() -> None:
    base, inverse, u, v, probes = case()
    part = slice(16, 32)
    exact = torch.linalg.inv(base.double() + u @ v.mT)
    inverse[:, part] += 3e-8 * inverse[:, part].sign()
    found = in_place_update(base, inverse, u, v, probes, part)
    assert found is not None
    found.write(base, inverse, torch.tensor(True))
    error = (exact - inverse).abs().mean(0)
    assert error[part].mean() < 2e-8
    inverse[:, part] += 1e-5
    assert in_place_update(base, inverse, u, v, probes, part) is None  # too far from an inverse to be trusted


def test_refused_matrices_stay_as_they_are() -> None:
    base, inverse, u, v, probes = case((2,))
    found = in_place_update(base, inverse, u, v, probes, slice(0, 16))
    assert found is not None
    old = base.clone(), inverse.clone()
    found.write(base, inverse, torch.tensor([True, False]))
    assert torch.equal(base[1], old[0][1]) and torch.equal(inverse[1], old[1][1])
    assert not torch.equal(base[0], old[0][0])


@pytest.mark.parametrize("what", ["singular", "drifted", "ill-conditioned", "not finite"])
def test_takes_a_closer_look(what: str) -> None:
    base, inverse, u, v, probes = case()
    if what == "singular":
        base, inverse, u, v = torch.eye(N), torch.eye(N), torch.zeros_like(u), torch.zeros_like(v)
        u[0, 0], v[0, 0] = -1.0, 1.0 - 1e-12
    elif what == "drifted":
        inverse = inverse * 1.001
    elif what == "ill-conditioned":
        base[0] *= 1e-5
        inverse = torch.linalg.inv(base.double()).float()
    else:
        u[0, 0] = torch.inf
    assert in_place_update(base, inverse, u, v, probes, slice(0, 16)) is None


def test_a_walk_keeps_inverse_and_determinant() -> None:
    """200 merges of rank 3 in float32, all in place."""
    torch.manual_seed(1)
    base = torch.nn.init.orthogonal_(torch.empty(3 * N, 3 * N))
    assert len(base) > CLOSE
    perturbation = p4.Invertible(base, rank=RANK)
    generator = torch.Generator().manual_seed(2)
    for _ in range(200):
        with torch.no_grad():
            perturbation.u.copy_(2e-3 * torch.randn(perturbation.u.shape, generator=generator))
        proposal = perturbation.propose(base)
        assert proposal.base is None
        assert perturbation.merge(base, generator).ok
    exact, tracked = base.double(), perturbation.tracked
    fresh = torch.linalg.inv(exact).float().double()
    identity = torch.eye(len(base))
    residual = (exact @ tracked.inverse.double() - identity).abs().max()
    assert residual < FRESH * (exact @ fresh - identity).abs().max()
    assert abs(float(tracked.logabsdet - torch.linalg.slogdet(exact)[1])) < 1e-5


def test_small_matrices_are_never_in_place() -> None:
    base = torch.eye(CLOSE)
    update = TrackedInverse(base).propose(base, torch.zeros(CLOSE, 1), torch.zeros(CLOSE, 1), 7, in_place=True)
    assert update.step is None and update.base is not None


def test_what_a_merge_has_probed_is_not_probed_again_unless_it_changed() -> None:
    base = torch.nn.init.orthogonal_(torch.empty(N, N))
    perturbation = p4.Invertible(base, rank=1, scale=1.0)
    with torch.no_grad():
        perturbation.u.normal_(std=1e-3)
    assert perturbation.merge(base).ok
    inverse = perturbation.tracked.inverse
    before = inverse.clone()
    perturbation.correct(base)
    assert torch.equal(inverse, before)
    with torch.no_grad():
        inverse.mul_(1.01)
    perturbation.correct(base)
    assert (inverse - torch.linalg.inv(base.double())).abs().max() < ROUNDED
