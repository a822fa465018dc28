"""Which features a layer is made for is a part of its state: checkpoints bring it along, or are refused."""

from __future__ import annotations

import copy
import io
import random

import pytest
import torch
from tests.flows.bijections import randomized
from torch import Tensor, nn

from p4torch.errors import CheckpointError
from p4torch.flows import Chain, Flow, Inverse, InvertibleLinear, NormalAndUniform, Partial, SplineCoupling
from p4torch.flows.structure import Structured, structure_of, with_structure

FEATURES, ANGLES = 6, 2


def built(seed: int, moved: int = 3) -> Flow:
    """A flow of random splits: which features move, which are mixed, and which are angles."""
    draw = random.Random(seed)
    angles = draw.sample(range(FEATURES), ANGLES)
    line = [index for index in range(FEATURES) if index not in angles]
    layers: list[nn.Module] = []
    for _ in range(3):
        # as many angles move as stay, so that all tensors have equal shapes for every seed
        half = [angles[0], *draw.sample(line, moved - 1)]
        layers.append(Inverse(SplineCoupling(FEATURES, draw.sample(half, moved), angles, hidden=(8,))))
        layers.append(Partial(FEATURES, draw.sample(line, 3), InvertibleLinear(3, rank=2)))
    return randomized(Flow(Chain(layers), NormalAndUniform(FEATURES, angles)).double(), 0.3)  # type: ignore[arg-type]


def points() -> Tensor:
    return 2 * torch.rand(20, FEATURES, dtype=torch.float64) - 1


def through_a_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Tensor] = torch.load(file, weights_only=True)
    return loaded


def test_another_flow_becomes_the_one_that_was_saved() -> None:
    one, other, x = built(0), built(1), points()
    assert not torch.equal(one.log_prob(x), other.log_prob(x))
    other.load_state_dict(through_a_file(one.state_dict()))
    assert torch.equal(other.log_prob(x), one.log_prob(x))
    assert repr(other) == repr(one)
    draws = [flow.sample_with_log_prob(5, torch.Generator().manual_seed(0)) for flow in (one, other)]
    for left, right in zip(*draws, strict=True):
        assert torch.equal(left, right)


def test_inside_of_a_users_module() -> None:
    one, other = (nn.ModuleDict({"a": nn.Linear(2, 2), "flow": built(seed)}) for seed in (0, 1))
    x = points()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other["flow"].log_prob(x), one["flow"].log_prob(x))  # type: ignore[operator]


@pytest.mark.parametrize("strict", [False, True])
def test_splits_of_another_size_are_named_and_nothing_is_written(strict: bool) -> None:
    one, other = built(0, moved=2), built(1)
    before = copy.deepcopy(other.state_dict())
    message = r"`bijection.bijections.0.bijection.place` in the checkpoint must have shape \(3,\), got \(2,\)"
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(one.state_dict(), strict=strict)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_features_that_do_not_exist_are_refused() -> None:
    large, small = (Partial(features, chosen, InvertibleLinear(2)) for features, chosen in ((6, (0, 5)), (4, (0, 3))))
    with pytest.raises(CheckpointError, match=r"`place` in the checkpoint must be of features below 4, got \[0, 5\]"):
        small.load_state_dict(large.state_dict())


def test_a_part_of_a_split_is_refused() -> None:
    one, other = built(0), built(1)
    state = one.state_dict()
    del state["bijection.bijections.0.bijection.kept"]
    with pytest.raises(CheckpointError, match=r"`bijection.bijections.0.bijection.kept` must be in the checkpoint"):
        other.load_state_dict(state, strict=False)


def without_structure(flow: Flow) -> dict[str, Tensor]:
    return {name: value for name, value in flow.state_dict().items() if name not in structure_of(flow)}


def test_a_checkpoint_that_does_not_tell() -> None:
    """As earlier versions wrote them: refused, unless one knows better."""
    one, same, x = built(0), built(0), points()
    state = without_structure(one)
    with pytest.raises(RuntimeError, match=r"Missing key.*bijections.0.bijection.place"):
        same.load_state_dict(state)
    same.load_state_dict(state, strict=False)
    assert torch.equal(same.log_prob(x), one.log_prob(x))
    again = built(0)
    again.load_state_dict(with_structure(again, state))
    assert torch.equal(again.log_prob(x), one.log_prob(x))
    assert with_structure(again, one.state_dict()).keys() == one.state_dict().keys()


def test_what_a_flow_is_made_for_is_in_its_state() -> None:
    flow = built(0)
    assert structure_of(flow).keys() <= flow.state_dict().keys()
    names = {name.rpartition(".")[2] for name in structure_of(flow)}
    assert names == {"place", "kept", "angle"}


class Shuffle(Structured):
    """A module of a user's own."""

    structure = ("order",)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(features))


def test_of_ones_own() -> None:
    one, other = Shuffle(20), Shuffle(20)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.order, one.order)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"`order` in the checkpoint must have shape \(3,\), got \(20,\)"):
        Shuffle(3).load_state_dict(one.state_dict())
