"""Norms of convolutions are certified, close, and kept."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from tests.convolutions import iterated_norm, supremum, true_norm
from torch import nn

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.properties._math.kernels import convolution, layer_options

#: A norm in float64 by SVD against a certified one.
ROUNDING = 1e-9
#: How far a certified norm may be above the norm, relatively.
CLOSE = 1e-2
#: Rounding of weights in float32, for a kernel of 36 entries a channel.
SINGLE = 1e-5

#: (channels in, out, kernel, options)
LAYERS: dict[str, tuple[int, int, Any, dict[str, Any]]] = {
    "plain": (2, 3, 3, {"padding": 1}),
    "valid": (3, 2, 3, {}),
    "same, even": (2, 2, 4, {"padding": "same"}),
    "much padding": (2, 2, 3, {"padding": 4}),
    "one side": (2, 2, (1, 3), {"padding": (0, 1)}),
    "1 x 1": (3, 4, 1, {}),
    "stride 2": (2, 4, 3, {"padding": 1, "stride": 2}),
    "stride 2 and 3": (2, 2, 3, {"padding": 1, "stride": (2, 3)}),
    "patches": (2, 5, 2, {"stride": 2}),
    "gaps": (2, 2, 2, {"stride": 3}),
    "groups": (4, 6, 3, {"padding": 1, "groups": 2}),
    "depthwise": (3, 3, 3, {"padding": 1, "groups": 3}),
    "groups and stride": (4, 4, 3, {"padding": 1, "groups": 2, "stride": 2}),
    "dilation": (2, 2, 3, {"padding": 2, "dilation": 2}),
    "dilation and stride": (2, 2, 3, {"padding": 3, "dilation": 3, "stride": 2}),
    "dilation and stride, common": (2, 2, 3, {"padding": 2, "dilation": 2, "stride": 4}),
    "large kernel": (1, 2, 5, {"padding": 2}),
}


def layer_of(name: str, padding_mode: str = "zeros", kind: str = "normal") -> nn.Conv2d:
    channels, out, kernel, options = LAYERS[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, out, kernel, padding_mode=padding_mode, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight.normal_()
        if kind == "mean":  # large at frequency 0
            layer.weight.mul_(0.3).add_(1)
        if kind == "wave":  # large between the frequencies of a grid
            x = torch.arange(layer.kernel_size[-1], dtype=torch.float64)
            layer.weight.mul_(0.1).add_((x * math.pi * 5 / 32 + 0.3).cos())
    return layer


def certified(layer: nn.Conv2d, size: Any = None) -> float:
    shape = tuple(layer.weight.shape)
    return float(convolution(shape, size, **layer_options(layer, "weight")).norm_bound(layer.weight)[0])


@pytest.mark.parametrize("kind", ["normal", "mean", "wave"])
@pytest.mark.parametrize("name", LAYERS)
def test_never_below(name: str, kind: str) -> None:
    layer = layer_of(name, kind=kind)
    free = certified(layer)
    for size in ((6, 7), (7, 6), (9, 12)):
        if name == "dilation and stride" and size[0] < 7:
            continue
        true = true_norm(layer, layer.in_channels, size)
        assert true <= free * (1 + ROUNDING)
        assert true <= certified(layer, size) * (1 + ROUNDING)
        smaller = true_norm(layer, layer.in_channels, (size[0] - 1, size[1] - 2)) if size[1] > 9 else 0
        assert smaller <= certified(layer, size) * (1 + ROUNDING)


@pytest.mark.parametrize("size", [(12, 12), (12, 24)])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("much padding", "gaps")])
def test_circular_padding_is_exact(name: str, size: tuple[int, int]) -> None:
    layer = layer_of(name, "circular")
    known = LAYERS[name][3]
    if (known.get("padding", 0), layer.kernel_size) == (0, (3, 3)) or name == "patches":
        layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    true = true_norm(layer, layer.in_channels, size)
    assert true == pytest.approx(certified(layer, size), rel=ROUNDING)


@pytest.mark.parametrize("kind", ["normal", "mean"])
@pytest.mark.parametrize("name", LAYERS)
def test_zero_padding_is_close(name: str, kind: str) -> None:
    """On images of 32 pixels, for each that a window sees of them, by power iteration, which is from below."""
    layer = layer_of(name, kind=kind)
    size = tuple(32 * step for step in layer.dilation)
    true, bound = iterated_norm(layer, size, 400), certified(layer, size)
    assert true <= bound * (1 + ROUNDING)
    assert bound <= (1 + CLOSE) * true


def test_any_size_is_close_on_large_images() -> None:
    """Of 64 pixels, by power iteration, which is a bound from below."""
    for name in ("plain", "stride 2", "groups"):
        layer = layer_of(name)
        assert certified(layer) <= (1 + CLOSE) * iterated_norm(layer, (64, 64), 400), name


def test_samples_bound_the_supremum() -> None:
    """Whatever lies between them; and by no more than their factor says."""
    for seed in range(20):
        torch.manual_seed(seed)
        weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
        known = convolution(tuple(weight.shape))
        true = supremum(weight)
        assert true <= float(known.norm_bound(weight)[0]) * (1 + ROUNDING)
        above = float(known.norm_above(weight, torch.zeros(2)))
        assert true <= above * (1 + ROUNDING)
        assert above <= true * 1.0101


@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv3d])
def test_other_numbers_of_axes(make: type[nn.Conv1d]) -> None:
    layer = make(2, 3, 2, padding=1, dtype=torch.float64)
    size = (8,) if make is nn.Conv1d else (4, 5, 4)
    true = true_norm(layer, 2, size)
    for known in (certified(layer), certified(layer, size)):  # type: ignore[arg-type]
        assert true <= known * (1 + ROUNDING)
        assert known <= 1.15 * true


def test_a_transposed_convolution_is_an_adjoint() -> None:
    layer = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, dtype=torch.float64)
    true = true_norm(layer, 3, (12, 12))
    p4.perturb(layer, "weight", p4.ConvolutionBound)
    known = float(layer.parametrizations.weight[0].certificate.norm)  # type: ignore[index,union-attr]
    assert true <= known * (1 + ROUNDING)
    assert known <= 1.05 * true


@pytest.mark.parametrize("options", [{}, {"size": 8}, {"at": "merge"}, {"at": "merge", "size": (8, 8)}])
@pytest.mark.parametrize("name", ["plain", "stride 2", "groups"])
def test_the_bound_holds_and_is_used(name: str, options: dict[str, Any]) -> None:
    layer = layer_of(name).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", p4.ProjectionWarning)
        p4.perturb(layer, "weight", p4.ConvolutionBound, bound=1.0, **options)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=5)
    for step in range(50):
        x = torch.randn(16, layer.in_channels, 8, 8)
        loss = -layer(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if "at" not in options or step % 5 == 4:
            plain = layer_of(name)
            plain.weight.data = layer.weight.detach().double()
            assert true_norm(plain, layer.in_channels, (8, 8)) <= 1.0
    assert scheduler.skipped == 0 and scheduler.merged == 10
    assert true_norm(plain, layer.in_channels, (8, 8)) > 0.9  # all of it is used


def test_perturb_reads_the_layer_and_finalize_leaves_it() -> None:
    layer = nn.Conv2d(4, 4, 3, stride=2, groups=2, dilation=2, padding=2)
    before = layer.weight.detach().clone()
    p4.perturb(layer, "weight", p4.ConvolutionBound, bound=100.0)
    known = layer.parametrizations.weight[0].convolution  # type: ignore[index,union-attr]
    assert (known.groups, known.stride) == (2, (1, 1))  # entries between those of stride 2 and dilation 2 are not seen
    assert torch.equal(layer.weight, before)
    plain = p4.finalize(layer)
    assert type(plain) is nn.Conv2d and torch.equal(plain.weight, before)


def test_a_kernel_outside_is_scaled() -> None:
    layer = layer_of("plain").float()
    norm = certified(layer)
    with pytest.warns(p4.ProjectionWarning, match="ConvolutionBound"):
        p4.perturb(layer, "weight", p4.ConvolutionBound, bound=0.5)
    torch.testing.assert_close(layer.weight, layer_of("plain").float().weight * (0.5 / norm), rtol=SINGLE, atol=0)


def test_the_gradient_goes_through_the_norm() -> None:
    """Growing the kernel as it is does not change the weight at the bound."""
    layer = layer_of("plain")
    p4.perturb(layer, "weight", p4.ConvolutionBound)
    part = layer.parametrizations.weight[0]  # type: ignore[index]
    base = layer.parametrizations.weight.original  # type: ignore[index,union-attr]
    with torch.no_grad():
        part.b.copy_(0.5 * base)
    weight = layer.weight
    torch.testing.assert_close(weight, base * (weight / base).mean())
    (gradient,) = torch.autograd.grad((weight * torch.randn_like(weight)).sum(), part.b)
    assert (gradient * base).sum().abs() < 1e-9 * gradient.norm() * base.norm()


def test_not_finite() -> None:
    layer = layer_of("plain")
    p4.perturb(layer, "weight", p4.ConvolutionBound)
    with torch.no_grad():
        layer.parametrizations.weight[0].b[0, 0, 0, 0] = torch.inf  # type: ignore[index,union-attr]
    assert not layer.weight.isfinite().all()
    (report,) = p4.merge(layer)
    assert not report.ok and layer.weight.isfinite().all()


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (nn.Conv2d(2, 2, 3), {"bound": 0.0}, "`bound`"),
        (nn.Conv2d(2, 2, 3), {"at": "never"}, "`at`"),
        (nn.Conv2d(2, 2, 3), {"size": (8, 8, 8)}, "`size` must be an integer, or 2"),
        (nn.Conv2d(2, 2, 3), {"size": 0}, "`size`"),
        (nn.Conv2d(2, 2, 3), {"groups": 3}, "`groups`"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), {}, "`padding_mode` must be zeros or circular"),
        (nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular"), {}, "`padding`"),
        (nn.Conv2d(2, 2, 3, padding=1, stride=2, padding_mode="circular"), {}, "`size` must be given"),
        (nn.Conv2d(2, 2, 3, padding=1, stride=2, padding_mode="circular"), {"size": 9}, "`size`"),
        (nn.Linear(2, 2), {}, "`base` must be of at least 3 dimensions"),
        (nn.Conv2d(2, 2, 3, dtype=torch.complex64), {}, "`base` must be real"),
    ],
)
def test_what_is_refused(layer: nn.Module, options: dict[str, Any], message: str) -> None:
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ArgumentError, match=message):
        p4.perturb(layer, "weight", p4.ConvolutionBound, **options)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_kernel_of_zeros_needs_a_bound() -> None:
    layer = nn.Conv2d(2, 2, 3)
    nn.init.zeros_(layer.weight)
    with pytest.raises(ArgumentError, match="`bound`"):
        p4.perturb(layer, "weight", p4.ConvolutionBound)
    p4.perturb(layer, "weight", p4.ConvolutionBound, bound=1.0)
    layer(torch.randn(1, 2, 5, 5)).sum().backward()
    assert layer.parametrizations.weight[0].b.grad.isfinite().all()  # type: ignore[index,union-attr]
