"""Lipschitz networks: long runs, refusals that change nothing, resumes, convolutions, and starts that are odd."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.layers import hand_over
from torch import Tensor, nn

import p4torch as p4
from p4torch.networks.constants import lipschitz_constant, overlap

#: A norm in float64 by SVD against its certified bound; outputs in float64.
ROUNDING = 1e-9
#: How far a certified bound may be above its limit: rounding of the weights is counted in.
COUNTED = 1e-6

pytestmark = pytest.mark.filterwarnings("ignore:.*each of its:p4torch.ProjectionWarning")


def balanced(widths: tuple[int, ...] = (3, 8, 8, 1), norm: float = 1.0) -> nn.Sequential:
    """A network of layers of one norm."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        with torch.no_grad():
            layers[-2].weight.mul_(norm / torch.linalg.matrix_norm(layers[-2].weight, ord=2))  # type: ignore[operator,arg-type]
    return nn.Sequential(*layers[:-1]).double()


def product(model: p4.LipschitzNetwork) -> float:
    return model.constant * float(torch.stack(norms(model)).prod())


def norms(model: p4.LipschitzNetwork) -> list[Tensor]:
    return [torch.linalg.matrix_norm(site.base.detach().double(), ord=2) for site in model.sites()]


def move(model: nn.Module, size: float) -> None:
    with torch.no_grad():
        for site in p4.sites(model):
            for _, value in site.perturbation.own_parameters():
                value.add_(size * torch.randn_like(value))


def training(
    every: int = 5, bound: float = 2.0, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, p4.MergeScheduler]:
    torch.manual_seed(0)
    model = p4.LipschitzNetwork(balanced(), bound, **options)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    return model, optimizer, p4.MergeScheduler(model, optimizer, every=every)


def walk(parts: tuple[nn.Module, torch.optim.Optimizer, p4.MergeScheduler], start: int, stop: int) -> None:
    model, optimizer, scheduler = parts
    for step in range(start, stop):
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - 5 * torch.sin(2 * x[:, :1])).square().mean().backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.slow
@pytest.mark.parametrize("at", ["step", "merge"])
def test_the_bound_holds_through_thousands_of_steps(at: str) -> None:
    parts = training(every=10, at=at, rank=2)
    model = parts[0]
    assert isinstance(model, p4.LipschitzNetwork)
    for start in range(0, 3000, 10):
        walk(parts, start, start + 10)
        assert product(model) <= 2.0 * (1 + ROUNDING)
        assert model.lipschitz_bound() <= 2.0 * (1 + COUNTED)
    assert parts[2].skipped == 0 and parts[2].merged == 900
    equal = 2.0 ** (1 / 3)
    if at == "merge":
        assert max(norms(model)) > 1.1 * equal and min(norms(model)) < 0.95 * equal  # shares were traded
    assert product(model) > 0.95 * 2.0
    x, y = 3 * torch.randn(2, 5000, 3, dtype=torch.float64)
    for apart in (y, x + 1e-3 * y):
        assert ((model(x) - model(apart)).norm(dim=-1) <= 2.0 * (x - apart).norm(dim=-1) * (1 + ROUNDING)).all()


@pytest.mark.parametrize("budget", [1e-3, 1e6])
def test_a_refusal_leaves_everything_bit_by_bit(budget: float) -> None:
    model = p4.LipschitzNetwork(balanced().float(), budget, rank=1)
    move(model, 0.5)
    second = model.sites()[1].perturbation
    with torch.no_grad():
        second.u.fill_(1e30)  # type: ignore[operator,union-attr]
        second.v.fill_(1e30)  # type: ignore[operator,union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reports = p4.merge(model, force=True)
    assert [report.merged for report in reports] == [0, 0, 0]
    assert reports[1].reason == "R_B(A) is not finite"
    assert reports[0].reason == "merged together or not at all: model.2.weight: R_B(A) is not finite"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith((".attempts", ".skips")), name


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"at": "merge"}])
def test_a_resume_is_exact(options: dict[str, Any]) -> None:
    straight, resumed = training(**options), training(**options)
    walk(straight, 0, 12)
    hand_over(straight, resumed)
    walk(straight, 12, 33)
    walk(resumed, 12, 33)
    for name, value in straight[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], value), name


def test_a_copy_goes_its_own_way() -> None:
    parts = training()
    walk(parts, 0, 12)
    before = {name: value.clone() for name, value in parts[0].state_dict().items()}
    reference = copy.deepcopy(parts[0])
    move(reference, 1.0)
    assert all(report.ok for report in p4.merge(reference))
    assert (
        isinstance(reference, p4.LipschitzNetwork)
        and reference.defect() == 0
        and product(reference) <= 2.0 * (1 + ROUNDING)
    )
    assert all(torch.equal(value, before[name]) for name, value in parts[0].state_dict().items())


def test_a_part_of_a_larger_model() -> None:
    """The network keeps its bound; what is beside it merges on its own."""
    alone = p4.perturb(nn.Linear(1, 1).double(), "weight", p4.LowRankUpdate)
    model = nn.Sequential(p4.LipschitzNetwork(balanced(), 1.0), alone)
    move(model, 1.0)
    assert [report.site for report in p4.merge(model)] == ["0.model.0.weight", "0.model.2.weight", "0.model.4.weight",
                                                           "1.weight"]  # fmt: skip
    assert product(model[0]) <= 1 + ROUNDING  # type: ignore[arg-type]


# --- starts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [[0], [4], [0, 2, 4]])
def test_layers_of_zeros_get_what_the_others_leave(zeros: list[int]) -> None:
    start = balanced()
    for index in zeros:
        nn.init.zeros_(start[index].weight)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = p4.LipschitzNetwork(start, 2.0)
    shares = torch.stack([site.perturbation.certificate.bound for site in model.sites()])  # type: ignore[union-attr]
    torch.testing.assert_close(shares.prod(), torch.tensor(2.0).double(), rtol=ROUNDING, atol=0)
    for _ in range(20):
        move(model, 0.5)
        assert all(report.ok for report in p4.merge(model))
        assert product(model) <= 2.0 * (1 + ROUNDING)
    assert min(norms(model)) > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_start_that_is_scaled_is_inside_in_every_dtype(dtype: torch.dtype) -> None:
    start = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20)).to(dtype)
    with pytest.warns(p4.ProjectionWarning) as caught:
        model = p4.LipschitzNetwork(start, 0.5)
    assert len(caught) == 1  # no layer was projected by itself
    assert model.defect() == 0 and product(model) <= 0.5


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"at": "end"}, {"method": "cut"}, {"directions": "wild"}, {"scale": -1.0}]
)
def test_a_refused_option_changes_nothing(options: dict[str, Any]) -> None:
    model = balanced(norm=5.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(p4.ArgumentError, match=next(iter(options))):
        p4.LipschitzNetwork(model, 1.0, **options)
    assert type(model[0]) is nn.Linear and model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def tied(data: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = nn.Parameter(model[0].weight.data) if data else model[0].weight
    return model


def has_nonfinite_state() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan  # type: ignore[index,operator]
    return model


def hooked() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.Linear(3, 3), nn.utils.weight_norm(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tied(data=False), "one weight in two: 0, 2"),
        (tied(data=True), "one weight in two: 0, 2"),
        (has_nonfinite_state(), "got 2: `base` must be finite"),
        (hooked(), "got 1: .*which a hook"),
        (nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64)), "got 0: `base` must be real"),
        (p4.perturb(nn.Linear(3, 3), "weight", p4.LowRankUpdate), "got itself: "),
        (nn.Sequential(nn.Linear(3, 3), nn.CELU(-1.0)), "got 1: CELU"),
        (nn.Sequential(nn.Linear(3, 3), nn.Softplus(1.0, threshold=1.0)), "got 1: Softplus"),
        (nn.Sequential(nn.Linear(3, 3), nn.PReLU()), "got 1: PReLU"),
        (nn.Sequential(nn.ConvTranspose1d(3, 3, 2)), "got 0: ConvTranspose1d"),
        (nn.ModuleList([nn.Linear(3, 3)]), "got itself: ModuleList"),
    ],
)
def test_what_is_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.LipschitzNetwork(model, 1.0)


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), "1", None])
def test_bounds_that_are_none(bound: Any) -> None:
    with pytest.raises(p4.ArgumentError, match="`bound` must be a positive number"):
        p4.LipschitzNetwork(balanced(), bound)


# --- ends ---------------------------------------------------------------------------------------------------------


def test_finalized_between_merges_it_warns() -> None:
    model, x = p4.LipschitzNetwork(balanced(), 1.0, at="merge"), torch.randn(5, 3, dtype=torch.float64)
    move(model, 2.0)
    expected, merged = model(x), copy.deepcopy(model)
    with pytest.warns(p4.ProjectionWarning, match=r"finalized model has .* above `bound` = 1: `p4.merge` before"):
        plain = p4.finalize(model)
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=ROUNDING)
    p4.merge(merged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p4.finalize(merged)


def test_a_plain_checkpoint_is_admitted_within_the_shares() -> None:
    model, steep = p4.LipschitzNetwork(balanced(), 1.0), balanced(norm=3.0)
    with pytest.warns(p4.ProjectionWarning, match="does not lie in the set"):
        model.model.load_state_dict(steep.state_dict())
    assert product(model) <= 1 + ROUNDING and model.defect() == 0


# --- constants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Softmax(-1), nn.Softmin(-1)])
def test_softmax_halves(layer: nn.Module) -> None:
    points = torch.cat([torch.randn(200, 4), torch.tensor([[50.0, 50.0, 0.0, 0.0]]) * torch.tensor([[1.0], [-1.0]])])
    got = torch.linalg.matrix_norm(torch.func.vmap(torch.func.jacrev(layer))(points.double()), ord=2)
    known = lipschitz_constant(layer)
    assert known == 0.5 and got.max() <= known * (1 + ROUNDING) and got.max() >= 0.99 * known


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_overlaps_of_convolutions(kernel: int, stride: int, dilation: int) -> None:
    """Patches as rows of ones and zeros: the bound is the largest number of them that an entry is in; and it holds."""
    layer = nn.Conv1d(2, 3, kernel, stride, padding=1, dilation=dilation, bias=False, dtype=torch.float64)
    patches = torch.nn.functional.unfold(
        torch.eye(24).double()[:, None, None, :], (1, kernel), (1, dilation), (0, 1), (1, stride)
    )
    seen = overlap(layer.kernel_size, layer.stride, layer.dilation)
    assert float(patches.flatten(1).sum(1).max()) == seen
    matrix = torch.func.jacrev(layer)(torch.zeros(2, 24).double()).flatten(2).flatten(0, 1)
    bound = seen**0.5 * torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
    assert torch.linalg.matrix_norm(matrix, ord=2) <= bound * (1 + ROUNDING)
