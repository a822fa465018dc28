"""Views: which matrices a property sees of a kernel, of gates, of an attention's weight; and that they lead back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import p4torch as p4
from p4torch.parametrize.views import regrouped, view_of

#: The same products of float64 numbers in another order.
ORDER = 1e-12

shapes = st.lists(st.integers(1, 4), min_size=2, max_size=5)


@given(st.data())
def test_regrouping_leads_back(data: st.DataObject) -> None:
    """Any split, order and joining of neighbours."""
    split = tuple(data.draw(shapes))
    order = tuple(data.draw(st.permutations(range(len(split)))))
    cut = data.draw(st.integers(1, len(split)))
    moved = [split[axis] for axis in order]
    matrix = (math.prod(moved[:cut]), math.prod(moved[cut:]))
    tensor = torch.randn(math.prod(split))
    view = regrouped(split, order, matrix, tuple(tensor.shape))
    seen = view.fit(tensor)
    assert seen.shape == matrix and seen.is_contiguous()
    assert torch.equal(view(seen), tensor) and torch.equal(view.right_inverse(tensor), seen)


@given(
    dimensions=st.integers(1, 3), transposed=st.booleans(), groups=st.integers(1, 3), inputs=st.integers(1, 3),
    outputs=st.integers(1, 3), sizes=st.lists(st.integers(1, 3), min_size=3, max_size=3), stack=st.booleans(),
)  # fmt: skip
def test_kernels(
    dimensions: int, transposed: bool, groups: int, inputs: int, outputs: int, sizes: list[int], stack: bool
) -> None:
    """Every kernel has its entry [out, in, position] where the property looks for it."""
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
    size = tuple(sizes[:dimensions])
    layer = kind(groups * inputs, groups * outputs, size, groups=groups)
    view = view_of(layer, "weight", layer.weight, "stack" if stack else "matrix", 2)
    assert view is not None
    seen, group = view.fit(layer.weight.detach()), (groups,) if groups > 1 else ()
    assert seen.shape == (*group, *size, outputs, inputs) if stack else (*group, outputs, inputs * math.prod(size))
    assert torch.equal(view(seen), layer.weight)
    seen = seen.reshape(groups, *seen.shape[len(group) :])
    for g, o, i in ((0, 0, 0), (groups - 1, outputs - 1, inputs - 1)):
        kernel = layer.weight[g * inputs + i, o] if transposed else layer.weight[g * outputs + o, i]
        entry = seen[g, ..., o, i] if stack else seen[g, o].reshape(inputs, *size)[i]
        assert torch.equal(entry, kernel)


def test_a_kernel_is_a_matrix_by_default() -> None:
    for layer in (nn.Conv2d(3, 4, 2), nn.ConvTranspose2d(4, 4, 3)):
        p4.perturb(layer, "weight", p4.LowRankUpdate)
        assert next(p4.sites(layer)).base.shape == (4, layer.weight.numel() // 4)


def test_a_kernel_of_one_position_is_its_matrix() -> None:
    layer = nn.Conv2d(4, 4, 1, bias=False, dtype=torch.float64)
    p4.perturb(layer, "weight", p4.Invertible, view="matrix")
    site, x = next(p4.sites(layer)), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    y = layer(x)
    back = site.perturbation.solve(site.base, y.movedim(1, -1).reshape(-1, 4)).reshape(2, 3, 3, 4).movedim(-1, 1)
    torch.testing.assert_close(back, x, rtol=0, atol=ORDER * 1e3)  # the condition of a random matrix


@pytest.mark.filterwarnings("ignore::p4torch.ProjectionWarning")
def test_patches_that_do_not_overlap_keep_their_length_under_an_orthogonal_kernel() -> None:
    layer = nn.Conv2d(3, 12, 2, stride=2, bias=False, dtype=torch.float64)
    p4.perturb(layer, "weight", p4.Orthogonal, view="matrix")
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x).norm(), x.norm(), rtol=ORDER, atol=0)


@pytest.mark.filterwarnings("ignore::p4torch.ProjectionWarning")
def test_the_norm_of_a_kernels_matrix_bounds_the_convolution() -> None:
    """Stride 1, zero padding: ‖conv‖ <= √positions · ‖matrix‖."""
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False, dtype=torch.float64)
    p4.perturb(layer, "weight", p4.SpectralBound, bound=0.5, view="matrix")
    x = torch.eye(3 * 25, dtype=torch.float64).reshape(-1, 3, 5, 5)
    assert float(torch.linalg.matrix_norm(layer(x).detach().flatten(1), ord=2)) <= 3 * 0.5


@pytest.mark.parametrize("view", ["stack", "matrix"])
@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0"])
def test_gates(view: Any, name: str) -> None:
    layer = nn.LSTM(3, 4)
    before = getattr(layer, name).detach().clone()
    p4.perturb(layer, name, p4.LowRankUpdate, view=view)
    (site,) = p4.sites(layer)
    columns = before.shape[1]
    assert torch.equal(site.base, before.reshape(4, 4, columns) if view == "stack" else before)


def test_attention() -> None:
    layer = nn.MultiheadAttention(6, 2)
    q, k, v = layer.in_proj_weight.detach().clone().chunk(3)
    p4.perturb(layer, "in_proj_weight", p4.LowRankUpdate, view="stack")
    assert torch.equal(next(p4.sites(layer)).base, torch.stack((q, k, v)))


def _kernel_to_matrix(kernel: Tensor) -> Tensor:
    return kernel.flatten(1)


@pytest.mark.parametrize("make", [lambda pair: pair, lambda pair: p4.View(*pair)])
def test_views_of_your_own(make: Any) -> None:
    pair = (_kernel_to_matrix, lambda matrix: matrix.reshape(4, 3, 2, 2))
    view = make(pair)
    layers = [nn.Conv2d(3, 4, 2), nn.Conv2d(3, 4, 2)]
    for layer in layers:
        p4.perturb(layer, "weight", p4.LowRankUpdate, view=view)  # one view for both
        assert next(p4.sites(layer)).base.shape == (4, 12)
        assert layer.weight.shape == (4, 3, 2, 2)


@pytest.mark.parametrize(
    ("module", "name", "view", "message"),
    [
        (nn.Linear(3, 4), "weight", "rows", "`view` must be one of matrix, stack, column, tensor, or a pair of func"),
        (nn.Linear(3, 4), "weight", "stack", r"`view` must be matrix.* for \(4, 3\), `weight` of Linear, got 'stack'"),
        (nn.Linear(3, 4), "bias", "matrix", r"`view` must be none for \(4,\), `bias` of Linear, got 'matrix'"),
        (nn.LSTM(3, 4, proj_size=2), "weight_hr_l0", "stack", "`weight_hr_l0` of LSTM, got 'stack'"),
        (nn.Embedding(3, 4), "weight", "stack", "`weight` of Embedding, got 'stack'"),
        (nn.Linear(3, 4), "weight", (1, 2), "`view` must be a pair of functions, got int and int"),
        (nn.Linear(3, 4), "weight", (torch.flatten, torch.flatten), "there and back"),
        (nn.Linear(3, 4), "weight", (lambda t: t[:2], lambda t: torch.cat((t, t))), "there and back"),
        (nn.Linear(3, 4), "weight", (lambda t: 2 * t, lambda t: t), "there and back"),
        (nn.Linear(3, 4), "weight", (lambda t: t.reshape(5), lambda t: t), "one that fits a tensor"),
        (nn.Linear(3, 4), "weight", (lambda t: None, lambda t: t), "one that fits a tensor"),
    ],
)  # fmt: skip
def test_views_that_do_not_fit(module: nn.Module, name: str, view: Any, message: str) -> None:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    kind = type(module)
    with pytest.raises(p4.ArgumentError, match=message):
        p4.perturb(module, name, p4.LowRankUpdate, view=view)
    assert type(module) is kind
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_complex_and_unusual_tensors() -> None:
    layer = p4.perturb(nn.Conv1d(2, 3, 2, dtype=torch.complex64), "weight", p4.LowRankUpdate, view="matrix")
    assert layer(torch.randn(1, 2, 4, dtype=torch.complex64)).isfinite().all()
    strided = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    before = strided.weight.detach().clone()
    assert torch.equal(p4.perturb(strided, "weight", p4.LowRankUpdate, view="stack").weight, before)
    spoilt = nn.Conv1d(2, 3, 2)
    nn.init.constant_(spoilt.weight, torch.nan)
    with pytest.raises(p4.ArgumentError, match="`base` must be finite, got 12 non-finite entries of 12"):
        p4.perturb(spoilt, "weight", p4.LowRankUpdate, view="matrix")


class _Shift(p4.Perturbation):
    """An elementwise property: S = all tensors, R_B(A) = A + B."""

    event_dim = 0

    def __init__(self, base: Tensor) -> None:
        super().__init__(base)
        self.b = nn.Parameter(torch.zeros_like(base))

    def forward(self, base: Tensor) -> Tensor:
        return base + self.b

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.b.zero_()

    def defect(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor)


def test_elementwise_properties_need_no_view() -> None:
    layer = p4.perturb(nn.Conv2d(3, 4, 2), "weight", _Shift)
    assert next(p4.sites(layer)).base.shape == (4, 3, 2, 2)
    layer(torch.randn(1, 3, 4, 4)).sum().backward()
    assert p4.merge(layer)[0].merged == 48


def test_a_plain_checkpoint_of_another_shape_is_refused() -> None:
    layer = p4.perturb(nn.Conv2d(3, 4, 2), "weight", p4.LowRankUpdate, view="matrix")
    with pytest.raises(p4.CheckpointError, match=r"`weight` in the checkpoint must have shape \(4, 3, 2, 2\), got"):
        layer.load_state_dict(nn.Conv2d(3, 4, 3).state_dict())
