"""The check of whole networks: what passes, what fails, and a trained network after a thousand merges."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import p4torch as p4
from p4torch.representations import Representation, o3, permutations, rotations2d, so3, su2, symmetric
from p4torch.testing import check_equivariance

#: Of a network in float32 after a thousand merges, relative to its outputs.
KEPT = 1e-5
#: The same in float64.
EXACT = 1e-12


class NormGate(nn.Module):
    """Each part of the features times a function of its own norm: equivariant under orthogonal representations."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.shift = nn.Parameter(torch.zeros(len(self.sizes)))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.sizes, -1)
        sizes = torch.stack([(part.square().sum(-1) + 1e-6).sqrt() for part in parts], -1)
        gates = (2 * sizes - 1 + self.shift).sigmoid()
        return torch.cat([part * gate[..., None] for part, gate in zip(parts, gates.unbind(-1), strict=True)], -1)


def network(inputs: Representation, hidden: Representation, sizes: Sequence[int], outputs: Representation) -> Any:
    """Linear layers between representations, and norm gates between those."""
    between = [inputs, hidden, hidden, outputs]
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(between):
        layers += [nn.Linear(one.size, other.size), NormGate(sizes)]
    model = nn.Sequential(*layers[:-1])
    for index, (one, other) in enumerate(itertools.pairwise(between)):
        weight = model[2 * index].weight
        nn.init.normal_(weight, std=(weight.numel() / min(weight.shape)) ** -0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", p4.ProjectionWarning)
            p4.perturb(model, f"{2 * index}.weight", p4.LinearSubspace, representation=(other, one))
            with torch.no_grad():  # a projection shortens
                size = weight.numel() / float(next(iter(model[2 * index].parametrizations.weight)).a.numel())
                model[2 * index].weight = size**0.5 * model[2 * index].weight
    return model


def dihedral(count: int) -> Representation:
    """Turns and reflections of a polygon, in the plane: a finite group without permutation matrices."""
    angle = 2 * math.pi / count
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return Representation([turn, torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))])


#: Inputs, hidden features with the sizes of their parts, outputs.
GROUPS: dict[str, tuple[Representation, Representation, list[int], Representation]] = {
    "finite": (
        3 * dihedral(5) + 2 * dihedral(5).trivial(),
        8 * dihedral(5) + 8 * dihedral(5).trivial(),
        [2] * 8 + [1] * 8,
        dihedral(5) + dihedral(5).trivial(),
    ),
    "so2": (
        rotations2d((1, 1, 2, 0)),
        rotations2d([1] * 6 + [2] * 4 + [0] * 6),
        [2] * 10 + [1] * 6,
        rotations2d((1, 0)),
    ),
    "so3": (
        3 * so3(1) + so3(0),
        6 * so3(1) + 3 * so3(2) + 6 * so3(0) + 2 * so3(1) * so3(1),
        [3] * 6 + [5] * 3 + [1] * 6 + [9] * 2,
        so3(1) + so3(0),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_a_trained_network_stays_equivariant_for_a_thousand_merges(name: str) -> None:
    torch.manual_seed(0)
    parts = GROUPS[name]
    teacher, model = network(*parts), network(*parts)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=2e-3)
    scheduler = p4.MergeScheduler(model, optimizer, every=2)
    losses = []
    for _ in range(2000):
        x = torch.randn(64, parts[0].size)
        optimizer.zero_grad()
        loss = (model(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    sites = list(p4.sites(model))
    assert scheduler.merged == 1000 * len(sites) and scheduler.skipped == 0
    defect = check_equivariance(model, parts[0], parts[-1], tolerance=KEPT)
    plain = check_equivariance(p4.finalize(model), parts[0], parts[-1], tolerance=KEPT)
    print(f"{name}: loss {losses[0]:.3g} to {sum(losses[-50:]) / 50:.3g}; defect {defect:.3g}, finalized {plain:.3g}")
    assert sum(losses[-50:]) / 50 < 0.2 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GROUPS)
def test_networks_of_equivariant_layers_pass(name: str, dtype: torch.dtype) -> None:
    parts = GROUPS[name]
    torch.set_default_dtype(dtype)
    try:
        model = network(*parts)
    finally:
        torch.set_default_dtype(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    defect = check_equivariance(model, parts[0], parts[-1], tolerance=KEPT if dtype == torch.float32 else EXACT)
    assert defect >= 0.0 and torch.equal(state, torch.random.get_rng_state())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_matrices_of_a_whole_group() -> None:
    orders = torch.eye(3)[torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])]
    assert check_equivariance(nn.ReLU(), orders, orders) == 0.0
    with pytest.raises(
        AssertionError, match=r"as it is: off by .* for element 1, allowed are 1.19e-05 \(torch.float32"
    ):
        check_equivariance(lambda x: x * torch.arange(3), orders, [*orders])


def test_functions_of_other_kinds() -> None:
    """The cross product is of O(3) only with its parity."""
    vectors = 2 * o3(1, -1)

    def cross(x: Tensor) -> Tensor:
        return torch.linalg.cross(x[..., :3], x[..., 3:])

    assert check_equivariance(cross, vectors, o3(1, 1)) < KEPT
    with pytest.raises(AssertionError, match="off by 2 for element"):
        check_equivariance(cross, vectors, o3(1, -1))
    assert check_equivariance(cross, vectors, o3(1, 1), dtype=torch.float64, tolerance=EXACT) < EXACT
    quaternions = su2(0.5)
    assert check_equivariance(lambda x: x.square().sum(-1, keepdim=True), quaternions, quaternions.trivial()) < KEPT


def test_what_is_not_equivariant_fails() -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="equivariance, as it is: off by"):
        check_equivariance(nn.Linear(3, 3), so3(1), so3(1))
    with pytest.raises(AssertionError, match="off by inf"):
        check_equivariance(lambda x: x / 0, so3(1), so3(1))


def test_a_perturbation_that_leaves_the_set_fails_after_a_merge() -> None:
    layer = nn.Linear(3, 3, bias=False)
    nn.init.eye_(layer.weight)
    p4.perturb(layer, "weight", p4.LowRankUpdate)
    assert check_equivariance(layer, so3(1), so3(1), merges=0) < KEPT
    with pytest.raises(AssertionError, match="equivariance, after 1 merges: off by"):
        check_equivariance(layer, so3(1), so3(1))


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "message"),
    [
        (nn.Identity(), so3(1), so3(0), "`outputs` must be a representation on 3 features, as the model has, got 1"),
        (nn.Identity(), so3(1), symmetric(3), "`representations` must be of one group"),
        (nn.Identity(), so3(1), torch.eye(3).unsqueeze(0), "`inputs, outputs` must be both a Representation, or both"),
        (nn.Identity(), torch.eye(3).unsqueeze(0), torch.eye(3).expand(2, 3, 3), "`outputs` must be of 1 elements"),
        (nn.Identity(), torch.eye(3), torch.eye(3), r"`generators` must be a tensor \(g, n, n\)"),
    ],
)
def test_bad_arguments(model: nn.Module, inputs: Any, outputs: Any, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        check_equivariance(model, inputs, outputs)


def test_a_mean_over_points_of_a_set() -> None:
    """A finite group by its generators: deep sets."""
    inputs = permutations([[1, 0, 2, 3], [1, 2, 3, 0]])
    assert check_equivariance(lambda x: x - x.mean(-1, keepdim=True), inputs, inputs) < KEPT
