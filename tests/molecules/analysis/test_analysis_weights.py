"""Effective sample sizes, of Gaussians whose answers are known."""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis import (
    clip_log_weights,
    effective_sample_size,
    effective_sample_size_growth,
    forward_effective_sample_size,
    largest_weight_share,
    log_importance_weights,
    normalized_weights,
    summarize_weights,
)
from p4torch.molecules.analysis.weights import clipped_count

SAMPLES = 400_000
ROUNDING = 1e-10
SAMPLING = 0.02  # relative, of averages over SAMPLES


def log_normal(x: Tensor, scale: float) -> Tensor:
    return -(x**2) / (2 * scale**2) - math.log(scale)


def exact(scale: float) -> float:
    """(E_q w)² / E_q w² of p = N(0, 1) and q = N(0, s²): √(2 s² − 1) / s²."""
    return math.sqrt(2 * scale**2 - 1) / scale**2


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.2, 3.0])
def test_gaussians_backward_and_forward(scale: float) -> None:
    data = torch.randn(SAMPLES, dtype=torch.float64)
    samples = scale * torch.randn(SAMPLES, dtype=torch.float64)
    constant = 137.0
    backward = log_importance_weights(log_normal(samples, 1) + constant, log_normal(samples, scale))
    assert effective_sample_size(backward) == pytest.approx(exact(scale), rel=SAMPLING)
    forward = log_importance_weights(log_normal(data, 1) + constant, log_normal(data, scale))
    with_samples = forward_effective_sample_size(forward, sample_log_weights=backward)
    assert with_samples == pytest.approx(exact(scale), rel=SAMPLING)
    if scale**2 < 2:
        assert forward_effective_sample_size(forward) == pytest.approx(exact(scale), rel=SAMPLING)


def test_forward_size_of_weighted_frames() -> None:
    broad = 1.4
    frames = broad * torch.randn(SAMPLES, dtype=torch.float64)
    weights = (log_normal(frames, 1) - log_normal(frames, broad)).exp()
    log_weights = log_normal(frames, 1) - log_normal(frames, 1.2)
    assert forward_effective_sample_size(log_weights, weights) == pytest.approx(exact(1.2), rel=SAMPLING)


def test_forward_size_sees_a_mode_that_samples_do_not() -> None:
    """p has two equal modes, q only the one on the left: the weights of its own samples are all alike."""
    mode = torch.rand(10_000) < 0.5
    on_the_left, on_the_right = math.log(0.5), math.log(0.5) + 50.0
    assert effective_sample_size(torch.full((10_000,), on_the_left)) == pytest.approx(1)
    assert forward_effective_sample_size(torch.where(mode, on_the_left, on_the_right).double()) < 1e-20


@given(values=st.lists(st.floats(-500, 500), min_size=1, max_size=50))
def test_bounds(values: list[float]) -> None:
    log_weights = torch.tensor(values, dtype=torch.float64)
    assert 1 / len(values) - ROUNDING <= effective_sample_size(log_weights) <= 1 + ROUNDING
    assert forward_effective_sample_size(log_weights) <= 1 + ROUNDING
    assert float(normalized_weights(log_weights).sum()) == pytest.approx(1)


def test_clips_the_largest_to_the_largest_of_the_others() -> None:
    log_weights = torch.tensor([0.0, 5.0, 1.0, 9.0, -math.inf])
    assert clip_log_weights(log_weights).tolist() == [0, 5, 1, 5, -math.inf]
    assert clip_log_weights(log_weights, share=0.4).tolist() == [0, 1, 1, 1, -math.inf]


@pytest.mark.parametrize(
    ("samples", "share", "count"), [(600_000, 1e-4, 60), (100, 1e-4, 1), (1, 1e-4, 0), (15, 0.1, 2), (10_001, 1e-4, 2)]
)
def test_count_of_what_is_clipped(samples: int, share: float, count: int) -> None:
    assert clipped_count(samples, share) == count


def test_summary_of_one_outlier() -> None:
    log_weights = torch.zeros(1000)
    log_weights[17] = math.log(999.0)
    summary = summarize_weights(log_weights)
    assert summary.clipped == pytest.approx(1)
    assert summary.clipped_count == 1
    assert summary.largest_share == pytest.approx(0.5)
    assert summary.raw == pytest.approx(1998**2 / (999 + 999**2) / 1000)
    assert largest_weight_share(log_weights) == pytest.approx(0.5)


def test_growth_is_the_size_of_every_beginning() -> None:
    log_weights = torch.randn(100, dtype=torch.float64)
    log_weights[0] = -math.inf
    sizes = torch.tensor([1, 2, 10, 100])
    growth = effective_sample_size_growth(log_weights, sizes)
    for size, grown in list(zip(sizes.tolist(), growth.tolist(), strict=True))[1:]:
        assert grown == pytest.approx(size * effective_sample_size(log_weights[:size]))
    assert float(growth[0]) == 0


def test_of_few_weights_above_zero_one_is_never_clipped() -> None:
    summary = summarize_weights(torch.tensor([-math.inf, 2.0, -math.inf]))
    assert summary.clipped_count == 0 and summary.raw == summary.clipped == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: effective_sample_size(torch.zeros(0)), "log_weights"),
        (lambda: effective_sample_size(torch.tensor([0.0, math.inf])), "log_weights"),
        (lambda: effective_sample_size(torch.tensor([0.0, math.nan])), "log_weights"),
        (lambda: effective_sample_size(torch.tensor([-math.inf])), "log_weights"),
        (lambda: clip_log_weights(torch.zeros(10), share=0.0), "share"),
        (lambda: clip_log_weights(torch.tensor([0.0, -math.inf])), "log_weights"),
        (lambda: log_importance_weights(torch.zeros(3), torch.zeros(2)), "log_proposal"),
        (lambda: log_importance_weights(torch.full((3,), math.nan), torch.zeros(3)), "log_target"),
        (lambda: forward_effective_sample_size(torch.tensor([0.0, -math.inf])), "log_weights"),
        (lambda: forward_effective_sample_size(torch.zeros(3), torch.zeros(3)), "weights"),
        (lambda: forward_effective_sample_size(torch.zeros(3), None, torch.zeros(0)), "sample_log_weights"),
        (lambda: effective_sample_size_growth(torch.zeros(3), torch.tensor([4])), "sizes"),
    ],
)
def test_bad_input_names_the_argument(make: object, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        make()  # type: ignore[operator]
