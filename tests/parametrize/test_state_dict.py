"""Copies and checkpoints of perturbed models."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from tests.constructors import PERTURBATIONS
from tests.parametrize.test_sites import assert_unchanged, move, perturbed_model, plain_model, snapshot
from tests.properties.test_half import element, site_on
from torch import nn

import p4torch as p4

# --- copies and checkpoints -------------------------------------------------------------------------------------


def test_deepcopy() -> None:
    model = perturbed_model()
    move(model)
    x = torch.randn(3, 4)
    model(x).sum().backward()
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_a_checkpoint_round_trips_through_a_file() -> None:
    model = perturbed_model()
    move(model)
    p4.merge(model)
    move(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = perturbed_model()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_unchanged(other, snapshot(model))


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("prefix", ["", "inner."])
def test_a_plain_checkpoint_loads_into_a_perturbed_model(prefix: str, scheduled: bool) -> None:
    plain, model = plain_model(), perturbed_model(rank=2)
    move(model)
    if scheduled:
        p4.MergeScheduler(model, torch.optim.Adam(model.parameters()))
    state = {prefix + name: value for name, value in plain.state_dict().items()}
    keys = set(state)
    (nn.ModuleDict({"inner": model}) if prefix else model).load_state_dict(state)
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), plain(x))
    assert set(state) == keys  # the caller's dictionary is not ours to change
    for site, index in zip(p4.sites(model), (0, 2), strict=True):
        weight = plain[index].weight.detach()
        assert torch.equal(site.base, weight)
        torch.testing.assert_close(site.perturbation.inverse(site.base), torch.linalg.inv(weight))
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    assert all(report.ok for report in p4.merge(model, force=True))


@pytest.mark.parametrize("what", ["plain", "perturbed", "rank"])
def test_a_checkpoint_of_another_shape_changes_nothing(what: str) -> None:
    model = perturbed_model()
    move(model)
    p4.MergeScheduler(model, torch.optim.Adam(model.parameters()))  # knows the whole model, so nothing is half loaded
    other = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(5, 5), nn.Linear(4, 2))
    if what != "plain":
        for index in (0, 2):
            p4.perturb(other[index], "weight", p4.Invertible, rank=1, scale=1.0)
    expected = r"in the checkpoint must have shape \(4, [14]\), got"
    if what == "rank":
        other = perturbed_model(rank=2)
        expected = (
            r"`0.weight` in .* must be of Invertible\(.*rank=1, scale=1\), got one of Invertible\(.*rank=2, scale=1\)"
        )
    before = snapshot(model)
    with pytest.raises(p4.CheckpointError, match=expected):
        model.load_state_dict(other.state_dict())
    assert_unchanged(model, before)


def test_a_singular_plain_checkpoint_changes_nothing() -> None:
    model, plain = perturbed_model(), plain_model()
    p4.MergeScheduler(model, torch.optim.Adam(model.parameters()))
    nn.init.zeros_(plain[2].weight)
    before = snapshot(model)
    with pytest.raises(p4.CheckpointError, match="nonsingular"):
        model.load_state_dict(plain.state_dict())
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.eye(3), r"`tensor` must be of shape \(4, 4\), got \(3, 3\)"),
        (torch.eye(4, dtype=torch.float64), "`tensor` must be torch.float32 on cpu, as u is, got torch.float64 on cpu"),
        (torch.eye(4, device="meta"), "`tensor` must be torch.float32 on cpu, as u is, got torch.float32 on meta"),
    ],
)
def test_assigning_a_tensor_that_does_not_fit_changes_nothing(tensor: torch.Tensor, expected: str) -> None:
    layer = p4.perturb(nn.Linear(4, 4), "weight", p4.Invertible, rank=1)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(p4.ArgumentError, match=expected):
        layer.weight = tensor
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_merging_into_a_base_on_another_device_is_refused() -> None:
    perturbation = p4.Invertible(torch.eye(3))
    with pytest.raises(p4.ArgumentError, match=r"`base` must be torch.float32 on cpu.*on meta"):
        perturbation.merge(torch.eye(3, device="meta"))


def test_a_state_without_a_site_leaves_it_alone() -> None:
    """As when a head is loaded, `strict=False`."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    p4.perturb(model, "0.weight", p4.LowRankUpdate, rank=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({"1.bias": torch.ones(3)}, strict=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name != "1.bias")


@pytest.mark.parametrize(
    "name", ["invertible", "orthogonal-blocks", "spectral-bound", "positive-definite", "fixed-spectrum"]
)
def test_a_model_on_meta_takes_a_state(name: str) -> None:
    """Deferred: the copy has no values until `load_state_dict(assign=True)`."""
    row, base = PERTURBATIONS[name], element(PERTURBATIONS[name]).float()
    model = site_on(row, base).module
    move(model)
    empty = copy.deepcopy(model).to("meta")
    empty.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert_unchanged(empty, snapshot(model))
    trains = [[name for name, value in part.named_parameters() if value.requires_grad] for part in (model, empty)]
    assert trains[0] == trains[1]
    assert not any(value.is_meta for value in (*empty.parameters(), *empty.buffers()))
    (one,), (other,) = p4.sites(model), p4.sites(empty)
    assert one.merge(seed=3) == other.merge(seed=3)
    assert_unchanged(empty, snapshot(model))


def test_a_plain_tensor_on_meta_is_refused() -> None:
    model = perturbed_model().to("meta")
    with pytest.raises(p4.CheckpointError, match=r"`0.weight` in the checkpoint must be of a perturbed model"):
        model.load_state_dict(plain_model().state_dict(), assign=True)


def test_base_and_b_of_two_dtypes_are_refused() -> None:
    model = perturbed_model().bfloat16()
    for site in p4.sites(model):
        for _, value in site.perturbation.own_parameters():
            value.data = value.data.float()
    for use in (lambda: model(torch.ones(1, 4).bfloat16()), lambda: model[0].weight):
        with pytest.raises(
            p4.ArgumentError, match=r"`weight` must be perturbed in one dtype, got B torch.float32 beside"
        ):
            use()
    assert bool(model.float()(torch.ones(1, 4)).isfinite().all())
