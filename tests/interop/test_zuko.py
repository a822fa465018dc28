"""Bijections of p4torch in flows of zuko, transforms of zuko in ours."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.flows.bijections import CONDITIONAL, randomized
from torch import nn

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, BentIdentity, Chain, Flow, InvertibleLinear, StandardNormal
from p4torch.testing import check_bijection

zuko = pytest.importorskip("zuko")
from p4torch.interop.zuko import from_zuko, to_zuko  # noqa: E402

#: float64 rounding of a few layers of two packages.
ROUNDING = 1e-8


def mixed(context: int) -> Any:
    """zuko's splines with linear layers of ours between them."""
    torch.manual_seed(0)
    flow = zuko.flows.NSF(3, context, transforms=2, hidden_features=(16,))
    first, second = flow.transform.transforms
    ours = InvertibleLinear(3, rank=1), InvertibleLinear(3, rank=1, context=context, context_rank=min(context, 1))
    return zuko.flows.Flow([to_zuko(ours[0]), first, to_zuko(ours[1]), second], flow.base)


@pytest.mark.parametrize("context", [0, 2])
def test_a_mixed_flow_trains_and_merges(context: int) -> None:
    flow = mixed(context)
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=5e-3)
    schedule = p4.MergeScheduler(flow, optimizer, every=5)
    losses = []
    for _ in range(40):
        c = torch.randn(64, 2)
        x = torch.randn(64, 3) * 0.3 + c.sum(-1, keepdim=True)
        loss = -flow(c if context else None).log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert schedule.merged == 16 and losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("context", [0, 2])
def test_densities_and_samples_of_a_mixed_flow(context: int) -> None:
    flow = randomized(mixed(context).double(), 0.1)
    law = flow(torch.randn(5, 2, dtype=torch.float64) if context else None)
    x, log_prob = law.rsample_and_log_prob((7,))
    assert x.shape == ((7, 5, 3) if context else (7, 3))
    torch.testing.assert_close(law.log_prob(x), log_prob, rtol=0, atol=1e-5)  # zuko inverts by bisection
    assert law.sample((2,)).shape == (2, *x.shape[1:])


@pytest.mark.parametrize("context", [0, 3])
def test_a_flow_of_ours_alone_is_the_same_in_zuko(context: int) -> None:
    torch.manual_seed(0)
    bijection = randomized(Chain([AffineCoupling(4, (8,), context=context), InvertibleLinear(4)]).double(), 0.2)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(4).double(), torch.ones(4).double(), buffer=True
    )
    x, c = torch.randn(5, 4).double(), torch.randn(5, 3).double() if context else None
    got = zuko.flows.Flow([to_zuko(bijection)], base)(c).log_prob(x)
    expected = Flow(bijection, StandardNormal(4)).log_prob(x, c)
    torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("context", [0, 3])
def test_a_transform_of_zuko_is_a_bijection(context: int) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        transform = zuko.flows.NICE(4, context, transforms=2, hidden_features=(8,), activation=nn.SiLU).transform
        return from_zuko(transform, 4, context)

    check_bijection(make, 4, compile=False)


def test_one_that_acts_feature_by_feature() -> None:
    transform = zuko.lazy.UnconditionalTransform(zuko.transforms.AffineTransform, torch.ones(3), torch.full((3,), 2.0))
    z, logabsdet = from_zuko(transform, 3)(torch.zeros(5, 3))
    assert z.shape == (5, 3) and logabsdet.shape == (5,)
    torch.testing.assert_close(logabsdet, torch.full((5,), 3 * torch.tensor(2.0).log().item()))


def test_a_chain_of_both() -> None:
    torch.manual_seed(0)
    transform = zuko.flows.NICE(4, 3, transforms=2, hidden_features=(8,)).transform
    chain = Chain([InvertibleLinear(4, context=3, context_rank=1), from_zuko(transform, 4, 3), BentIdentity()])
    flow = Flow(randomized(chain, 0.1), StandardNormal(4)).double()
    context = torch.randn(5, 1, 3, dtype=torch.float64)
    x, log_prob = flow.sample_with_log_prob(6, context)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob, rtol=0, atol=ROUNDING)
    p4.merge(flow, force=True)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_zuko(nn.Linear(2, 2)), "`bijection` must be a Bijection, got Linear"),  # type: ignore[arg-type]
        (lambda: from_zuko(nn.Linear(2, 2), 2), "`transform` must be a LazyTransform of zuko, got Linear"),
        (lambda: to_zuko(CONDITIONAL["coupling"][0]())(None), "`context` must be given"),
        (lambda: from_zuko(zuko.flows.NICE(4, 3).transform, 4, 3)(torch.zeros(5, 4)), "`context` must be given"),
        (lambda: from_zuko(zuko.flows.NICE(4).transform, 4)(torch.zeros(5, 3)), "`x` must be of shape"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


_DEFAULTS = """
import torch
{before}
from p4torch.flows import Flow, InvertibleLinear, StandardNormal
torch.manual_seed(0)
law = Flow(InvertibleLinear(3, init="orthogonal"), StandardNormal(3)).distribution()
x = law.sample((4,))
print(law.log_prob(x).tolist(), law.log_prob(x, ).shape, law.expand((2,)).sample().shape)
print(torch.distributions.Distribution._validate_args)
"""


def _printed(before: str) -> list[str]:
    code = _DEFAULTS.format(before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.slow
def test_defaults_of_validation_change_nothing_and_stay_as_they_were() -> None:
    """Importing zuko switches off the validation of all of torch's distributions."""
    plain, with_zuko, ours = (_printed(before) for before in ("", "import zuko", "import p4torch.interop.zuko"))
    assert plain[0] == with_zuko[0] == ours[0]
    assert plain[1] == ours[1] == "True" and with_zuko[1] == "False"
