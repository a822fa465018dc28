"""Bijections of images: against `check_bijection` as maps of flat points, shapes, refusals, and the Glow model."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod

import pytest
import torch
from tests.flows.bijections import randomized
from torch import Tensor
from torch.nn import functional as F

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import (
    ActNorm2d,
    Bijection,
    Chain,
    ConvCoupling,
    Flow,
    Glow,
    Inverse,
    InvertibleConv1x1,
    InvertibleLinear,
    Multiscale,
    Squeeze,
    StandardNormal,
    VolumePreserving,
    fit_actnorm,
    for_inference,
)
from p4torch.testing import check_bijection

#: Sums of a few thousand products in float64, in another order.
ORDER = 1e-10
#: Means and variances of a batch in float32.
STATISTICS = 1e-5


class Flattened(Bijection):
    """A bijection of images as one of flat points `(..., C H W)`."""

    def __init__(
        self, bijection: Bijection, shape: tuple[int, int, int], latent: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.bijection, self.shape, self.latent = bijection, shape, latent or shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, logabsdet = self.bijection(x.unflatten(-1, self.shape))
        return z.flatten(-len(self.latent)), logabsdet

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, logabsdet = self.bijection.inverse(z.unflatten(-1, self.latent))
        return x.flatten(-3), logabsdet


def two_levels() -> Multiscale:
    def level(channels: int) -> Chain:
        return Chain([ActNorm2d(channels), InvertibleConv1x1(channels), ConvCoupling(channels, hidden=4)])

    return Multiscale(1, 4, 8, [level(4), level(8)])


IMAGES: dict[str, tuple[Callable[[], Bijection], tuple[int, int, int], tuple[int, ...] | None]] = {
    "conv 1x1": (lambda: InvertibleConv1x1(3), (3, 2, 3), None),
    "conv 1x1, additive": (lambda: InvertibleConv1x1(3, rank=1, bias=False, init="orthogonal"), (3, 2, 2), None),
    "conv 1x1, rotation": (lambda: InvertibleConv1x1(4, property=p4.Orthogonal), (4, 1, 3), None),
    "squeeze": (Squeeze, (2, 4, 2), (8, 2, 1)),
    "inverse squeeze": (lambda: Inverse(Squeeze()), (4, 2, 1), (1, 4, 2)),
    "actnorm": (lambda: ActNorm2d(3), (3, 2, 2), None),
    "coupling": (lambda: ConvCoupling(4, hidden=5), (4, 2, 3), None),
    "coupling, odd": (lambda: ConvCoupling(3, hidden=2), (3, 2, 2), None),
    "multiscale": (two_levels, (1, 4, 8), (32,)),
    "multiscale, one level": (lambda: Multiscale(2, 2, 2, [ActNorm2d(8)]), (2, 2, 2), (8,)),
    "glow": (lambda: Glow(1, 4, 4, levels=2, depth=1, hidden=3).bijection, (1, 4, 4), (16,)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_bijection_of_images(name: str) -> None:
    make, shape, latent = IMAGES[name]
    check_bijection(lambda: Flattened(make(), shape, latent), prod(shape), compile=name == "glow")


@pytest.mark.parametrize("name", IMAGES)
def test_no_images_at_all(name: str) -> None:
    make, shape, latent = IMAGES[name]
    bijection = make()
    z, logabsdet = bijection(torch.zeros(0, *shape))
    assert z.shape == (0, *(latent or shape)) and logabsdet.shape in ((), (0,))
    assert bijection.inverse(z)[0].shape == (0, *shape)


def test_the_1x1_layer_is_a_convolution_of_known_determinant() -> None:
    layer = randomized(InvertibleConv1x1(5, init="orthogonal").double(), 0.3)
    x = torch.randn(7, 5, 3, 4, dtype=torch.float64)
    z, logabsdet = layer(x)
    expected = F.conv2d(x, layer.linear.weight[:, :, None, None], layer.linear.bias)
    torch.testing.assert_close(z, expected, rtol=ORDER, atol=ORDER)
    torch.testing.assert_close(logabsdet, 12 * torch.linalg.slogdet(layer.linear.weight)[1], rtol=ORDER, atol=ORDER)
    assert logabsdet.shape == ()


def test_squeeze_gathers_squares() -> None:
    x = torch.arange(32.0).reshape(2, 4, 4)
    z = Squeeze()(x)[0]
    assert z.shape == (8, 2, 2)
    for c in range(2):
        for a in range(2):
            for b in range(2):
                assert torch.equal(z[4 * c + 2 * a + b], x[c, a::2, b::2])


def test_a_flow_of_images() -> None:
    flow = randomized(Flow(two_levels(), StandardNormal(32)).double(), 0.2)
    x = flow.sample(5, torch.Generator().manual_seed(0))
    assert x.shape == (5, 1, 4, 8)
    log_prob = flow.log_prob(x)
    assert log_prob.shape == (5,)
    z, _ = flow.bijection(x)
    jacobian = torch.autograd.functional.jacobian(lambda image: flow.bijection(image[None])[0][0], x[0]).reshape(32, 32)
    expected = -(z[0].square().sum() + 32 * math.log(2 * math.pi)) / 2 + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(log_prob[0], expected, rtol=ORDER, atol=ORDER)
    again, known = flow.sample_with_log_prob(3)
    torch.testing.assert_close(flow.log_prob(again), known, rtol=ORDER, atol=ORDER)


def test_actnorm_is_fitted_layer_by_layer() -> None:
    torch.manual_seed(0)
    flow = randomized(Glow(1, 8, 8, levels=2, depth=2, hidden=4), 0.1)
    x = 3 * torch.randn(100, 1, 8, 8) + 5
    assert fit_actnorm(flow, x) is flow
    seen: list[Tensor] = []
    layers = [module for module in flow.modules() if isinstance(module, ActNorm2d)]
    for layer in layers:
        layer.register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs[0].detach()))
    flow(x)
    assert len(seen) == len(layers) == 4
    for z in seen:
        rows = z.movedim(-3, 0).flatten(1)
        assert rows.mean(1).abs().max() < STATISTICS
        assert (rows.std(1, correction=0) - 1).abs().max() < STATISTICS


def test_a_constant_channel_is_fitted_to_something_finite() -> None:
    layer = ActNorm2d(2)
    layer.fit(torch.stack([torch.zeros(3, 3), torch.randn(3, 3)]).expand(4, 2, 3, 3))
    assert all(value.isfinite().all() for value in layer.parameters())


def test_glow_learns_through_merges() -> None:
    torch.manual_seed(0)
    flow = Glow(1, 4, 4, levels=2, depth=2, hidden=8)
    scale = torch.linspace(0.2, 2, 16).reshape(1, 4, 4)
    fit_actnorm(flow, scale * torch.randn(256, 1, 4, 4))
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=1e-2)
    scheduler = p4.MergeScheduler(flow, optimizer, every=5)
    losses = []
    for _ in range(60):
        loss = -flow.log_prob(scale * torch.randn(128, 1, 4, 4)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    entropy = float(scale.log().sum()) + 8 * (1 + math.log(2 * math.pi))
    assert scheduler.merged == 4 * 12 and scheduler.skipped == 0
    assert losses[-1] < losses[0]
    assert losses[-1] < entropy + 2  # a Gaussian of independent pixels: the entropy is the least possible


def test_a_finalized_glow_computes_the_same() -> None:
    flow = randomized(Glow(3, 4, 4, levels=1, depth=2, hidden=4).double(), 0.1)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    before = flow.log_prob(x)
    plain = for_inference(flow)
    torch.testing.assert_close(plain.log_prob(x), before, rtol=ORDER, atol=ORDER)
    torch.testing.assert_close(p4.finalize(flow).log_prob(x), before, rtol=ORDER, atol=ORDER)


def test_volume_preserving_flows_are_of_vectors() -> None:
    """The determinant of a 1 x 1 convolution counts once a pixel."""
    flow = Chain([Multiscale(1, 2, 2, [InvertibleConv1x1(4)]), InvertibleLinear(4)])
    with pytest.raises(ArgumentError, match="`model`"):
        VolumePreserving(flow)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Glow(3, 8, 8)(torch.zeros(2, 8, 8, 3)), r"`x` .* x.movedim\(-1, -3\)"),
        (lambda: InvertibleConv1x1(3)(torch.zeros(2, 8, 9, 3)), r"\(\.\.\., 3, H, W\), got .*: x.movedim"),
        (lambda: InvertibleConv1x1(3).inverse(torch.zeros(2, 8, 9, 3)), r"z.movedim"),
        (lambda: ConvCoupling(4)(torch.zeros(2, 5, 5)), "`x`"),
        (lambda: ActNorm2d(4)(torch.zeros(2, 4)), "`x`"),
        (lambda: ActNorm2d(4).fit(torch.zeros(0, 4, 2, 2)), "`x` must be with pixels"),
        (lambda: ActNorm2d(4)(torch.zeros(2, 4, 3, 3, dtype=torch.uint8)), "floating-point"),
        (lambda: InvertibleConv1x1(4)(torch.zeros(2, 4, 3, 3).double()), "`x` .*float32"),
        (lambda: Squeeze()(torch.zeros(1, 3, 4)), "even height"),
        (lambda: Squeeze().inverse(torch.zeros(6, 3, 4)), "4 n channels"),
        (lambda: Glow(1, 8, 12, levels=3), "`width` must be a multiple of 8, for 3 levels, got 12"),
        (lambda: Glow(1, 8, 8, levels=0), "`levels`"),
        (lambda: Multiscale(1, 8, 8, []), "`levels`"),
        (lambda: Multiscale(1, 8, 8, [Squeeze()])(torch.zeros(1, 8, 8)), "`levels` .* keep the shape"),
        (lambda: Multiscale(1, 8, 8, [ActNorm2d(4)])(torch.zeros(1, 8, 4)), r"\(\.\.\., 1, 8, 8\)"),
        (lambda: Multiscale(1, 8, 8, [ActNorm2d(4)]).inverse(torch.zeros(2, 63)), "`z`"),
        (lambda: Flow(Multiscale(1, 8, 8, [ActNorm2d(4)]), StandardNormal(63)), "`base`"),
        (lambda: ConvCoupling(1), "`channels`"),
        (lambda: ConvCoupling(2, hidden=0), "`hidden`"),
        (lambda: InvertibleConv1x1(0), "`channels`"),
    ],
)
def test_bad_input_names_the_argument(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
