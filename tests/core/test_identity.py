"""Which property a state is of: said by every state, compared before anything is written."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.constructors import PERTURBATIONS, shifts
from tests.parametrize.test_sites import assert_unchanged, snapshot
from tests.properties.test_half import element, site_on
from torch import Tensor, nn
from torch.distributed import checkpoint as distributed_checkpoint

import p4torch as p4
from p4torch.core.identity import KEY, identities

Property = Callable[..., p4.Perturbation]


def model_of(property: Property, base: Tensor | None = None) -> nn.Sequential:
    """Three layers, of which the second is perturbed: something stands before it that could be written."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4) if base is None else base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", p4.PropertyWarning)  # zeros that do not train
        return p4.perturb(model, "1.weight", property)  # type: ignore[return-value]


#: Pairs whose tensors have equal names and shapes: without the identity, one loads as the other.
LOOK_ALIKE: dict[str, tuple[Property, Property]] = {
    "property": (partial(p4.Invertible, rank=1), partial(p4.UnitDeterminant, rank=1)),
    "property, all entries": (p4.UnitDeterminant, partial(p4.Invertible, form="relative")),
    "form": (partial(p4.Invertible, rank=1), partial(p4.Invertible, rank=1, form="exponential")),
    "kind": (partial(p4.LinearSubspace, kind="symmetric"), partial(p4.LinearSubspace, kind="skew")),
    "triangle": (partial(p4.LinearSubspace, kind="lower"), partial(p4.LinearSubspace, kind="upper")),
    "mask": tuple(partial(p4.LinearSubspace, mask=torch.ones(4, 4).tril(part).bool()) for part in (0, 1)),  # type: ignore[dict-item]
    "group": (
        partial(p4.LinearSubspace, group=shifts(4, 2), rank=2),
        partial(p4.LinearSubspace, group=torch.stack([torch.eye(4), torch.eye(4)[[1, 0, 3, 2]]]), rank=2),
    ),
    "bound": (partial(p4.SpectralBound, bound=1.0), partial(p4.SpectralBound, bound=2.0)),
    "where the bound holds": (partial(p4.SpectralBound, bound=2.0), partial(p4.SpectralBound, bound=2.0, at="merge")),
    "scale": (partial(p4.Orthogonal, block=2), partial(p4.Orthogonal, block=2, scale=0.5)),
    "simplex": (partial(p4.Stochastic, rank=2), partial(p4.Stochastic, rank=2, doubly=True)),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("wrapped", ["alone", "in a parent"])
@pytest.mark.parametrize("name", LOOK_ALIKE)
def test_a_state_of_another_property_is_refused_and_nothing_is_written(name: str, wrapped: str, strict: bool) -> None:
    one, other = (model_of(property) for property in LOOK_ALIKE[name])
    state, loaded = one.state_dict(), other
    assert {key: value.shape for key, value in state.items() if KEY not in key} == {
        key: value.shape for key, value in other.state_dict().items() if KEY not in key
    }  # that is what makes them dangerous
    prefix = ""
    if wrapped != "alone":
        prefix = "inner."
        state, loaded = {prefix + key: value for key, value in state.items()}, nn.Sequential()
        loaded.add_module("before", nn.Linear(2, 2))
        state["before.weight"], state["before.bias"] = torch.zeros(2, 2), torch.zeros(2)
        loaded.add_module("inner", other)
    before = snapshot(loaded)
    said = [next(p4.sites(model)).perturbation.identity() for model in (other, one)]
    with pytest.raises(p4.CheckpointError) as caught:
        loaded.load_state_dict(state, strict=strict)
    assert str(caught.value) == f"`{prefix}1.weight` in the checkpoint must be of {said[0]}, got one of {said[1]}"
    assert_unchanged(loaded, before)


@pytest.mark.parametrize("seen", [False, True])
def test_a_parent_that_was_there_before(seen: bool) -> None:
    """Until p4torch has seen it, torch writes what stands before the site, which is as it was in either case."""
    one, other = (nn.ModuleDict({"before": nn.Linear(2, 2), "inner": nn.Linear(4, 4)}) for _ in range(2))
    for model, property in ((one, p4.Invertible), (other, p4.UnitDeterminant)):
        nn.init.eye_(model["inner"].weight)
        p4.perturb(model["inner"], "weight", property, rank=1)
    if seen:
        p4.parameter_groups(other)
    before, inside = snapshot(other), snapshot(other["inner"])
    with pytest.raises(p4.CheckpointError, match=r"`inner.weight` .* must be of UnitDeterminant"):
        other.load_state_dict(one.state_dict())
    assert_unchanged(other["inner"], inside)
    if seen:
        assert_unchanged(other, before)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_state_loads_where_it_came_from(name: str, tmp_path: Path) -> None:
    """Through a file of safetensors, into another element of the same set; in float64, too."""
    files = pytest.importorskip("safetensors.torch")
    row = PERTURBATIONS[name]
    base = element(row)
    one, other = (site_on(row, value) for value in (base, base.clone()))
    module, loaded = one.module, other.module
    state = {key: value.contiguous().clone() for key, value in module.state_dict().items()}
    if not base.is_complex():  # safetensors has no complex128
        files.save_file(state, tmp_path / "s.safetensors")
        state = files.load_file(tmp_path / "s.safetensors")
    loaded.load_state_dict(state)
    assert_unchanged(loaded, snapshot(module))
    shorter = torch.complex64 if base.is_complex() else torch.float32
    short = site_on(row, base.to(shorter))
    with warnings.catch_warnings():
        warnings.simplefilter("error", p4.PropertyWarning)
        short.module.load_state_dict(module.state_dict())


#: What stands in users' files: a change here makes them unreadable.
WRITTEN = {
    "invertible": "Invertible(form='additive', rank=1)",
    "invertible-relative-all": "Invertible(form='relative', block=6, side='right')",
    "orthogonal-rank2": "Orthogonal(rank=2)",
    "orthogonal-blocks-both": "Orthogonal(block=4, side='both')",
    "unit-determinant-blocks": "UnitDeterminant(block=4, side='right')",
    "special-unitary": "SpecialUnitary(block=3, side='right')",
    "symplectic": "Symplectic(rank=1)",
    "positive-definite-rank2": "PositiveDefinite(rank=2)",
    "fixed-spectrum": "FixedSpectrum(rank=1)",
    "low-rank-update": "LowRankUpdate(rank=1)",
    "spectral-bound": "SpectralBound(whole, at='step')",
    "spectral-bound-slack": "SpectralBound(rank=2, at='step', bound=100)",
    "fixed-rank": "FixedRank(rank=2)",
    "nonnegative": "Nonnegative()",
    "stochastic-doubly": "Stochastic(doubly=True, rank=2)",
    "symmetric": "Symmetric('symmetric', rank=1)",
    "circulant": "Circulant()",
    "toeplitz": "Toeplitz()",
    "lower": "Masked('lower', rank=1)",
    "masked": "Masked(mask f4e5df71, rank=1)",
    "equivariant": "Equivariant(group 26ae6aac, rank=1)",
    "intertwining": "Intertwining(representation 2b61efb1)",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_states_say(name: str) -> None:
    assert site_on(PERTURBATIONS[name], element(PERTURBATIONS[name])).perturbation.identity() == WRITTEN[name]


def test_options_that_do_not_define_the_set_may_differ() -> None:
    pairs = [
        (p4.Nonnegative, partial(p4.Nonnegative, floor=0.0)),
        (partial(p4.SpectralBound, bound=2.0), partial(p4.SpectralBound, bound=2.0, method="scale")),
        (partial(p4.Invertible, rank=1), partial(p4.Invertible, rank=1, bounds="paper", max_update_norm=1.0)),
        (
            partial(p4.LinearSubspace, group=shifts(4, 4), rank=1),
            partial(p4.LinearSubspace, group=shifts(4, 4).flip(0).double(), rank=1),
        ),
    ]
    for one, other in pairs:
        model_of(other).load_state_dict(model_of(one).state_dict())


def test_a_bound_that_was_not_given_comes_with_the_state() -> None:
    one, other = model_of(p4.SpectralBound, 3 * torch.eye(4)), model_of(p4.SpectralBound)
    other.load_state_dict(one.state_dict())
    (site,) = p4.sites(other)
    assert float(site.perturbation.defect(site.base)) == 0.0


def test_networks_say_their_bound() -> None:
    one, other = (p4.LipschitzNetwork(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), bound) for bound in (8.0, 4.0))
    before = snapshot(other)
    with pytest.raises(p4.CheckpointError, match=r"`state` in the checkpoint must be of LipschitzNetwork\(bound=4"):
        other.load_state_dict(one.state_dict())
    assert_unchanged(other, before)
    same = p4.LipschitzNetwork(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 8.0)
    same.load_state_dict(one.state_dict())
    assert torch.equal(same.model[0].weight, one.model[0].weight)  # type: ignore[index]


class Shifted(p4.Perturbation):
    """A user's own: all tensors, moved by B."""

    def __init__(self, base: Tensor, by: int = 1) -> None:
        super().__init__(base)
        self.by = by
        self.b = nn.Parameter(torch.zeros_like(base))

    def forward(self, base: Tensor) -> Tensor:
        return base + self.by * self.b

    def reset(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.b.zero_()

    def defect(self, tensor: Tensor) -> Tensor:
        return tensor.new_zeros(())


class Spoken(Shifted):
    """The same with its options in `extra_repr`, where torch's users put them."""

    def extra_repr(self) -> str:
        return f"by={self.by}"


class Keeping(Shifted):
    """One that keeps something else in its entry of the state."""

    def get_extra_state(self) -> Any:
        return {"by": self.by}

    def set_extra_state(self, state: Any) -> None:
        self.by = state["by"]


def test_of_ones_own() -> None:
    with pytest.raises(p4.CheckpointError, match=r"must be of Spoken\(by=2\), got one of Shifted\(\)"):
        model_of(partial(Spoken, by=2)).load_state_dict(model_of(Shifted).state_dict())
    with pytest.raises(p4.CheckpointError, match=r"must be of Spoken\(by=2\), got one of Spoken\(by=1\)"):
        model_of(partial(Spoken, by=2)).load_state_dict(model_of(Spoken).state_dict())
    model_of(Spoken).load_state_dict(model_of(Spoken).state_dict())
    keeping = model_of(Keeping)
    keeping.load_state_dict(model_of(partial(Keeping, by=3)).state_dict())
    assert next(p4.sites(keeping)).perturbation.by == 3  # type: ignore[attr-defined]


def test_a_perturbation_alone() -> None:
    one, other = p4.Invertible(torch.eye(3), rank=1), p4.UnitDeterminant(torch.eye(3), rank=1)
    before = snapshot(other)
    with pytest.raises(p4.CheckpointError, match=r"`state` in the checkpoint must be of UnitDeterminant\(rank=1\)"):
        other.load_state_dict(one.state_dict())
    assert_unchanged(other, before)


@pytest.mark.parametrize("strict", [False, True])
def test_a_state_that_does_not_say_loads_with_a_warning(strict: bool) -> None:
    """As those of earlier versions."""
    one, other = model_of(partial(p4.Invertible, rank=1)), model_of(partial(p4.Invertible, rank=1))
    state = {key: value for key, value in one.state_dict().items() if not key.endswith(KEY)}
    with pytest.warns(p4.PropertyWarning, match=r"does not say which property `1.weight` has") as caught:
        other.load_state_dict(state, strict=strict)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert_unchanged(other, snapshot(one))


def test_a_state_in_another_dtype_is_read() -> None:
    one, other = model_of(partial(p4.Invertible, rank=1)), model_of(partial(p4.UnitDeterminant, rank=1))
    for dtype in (torch.float64, torch.bfloat16):
        cast = {key: value.to(dtype) for key, value in one.state_dict().items()}
        with pytest.raises(p4.CheckpointError, match="got one of Invertible"):
            other.load_state_dict(cast)


def test_complex_numbers_do_not_become_real_ones() -> None:
    one, other = (p4.perturb(nn.Linear(3, 3, dtype=kind), "weight", p4.LowRankUpdate) for kind in (torch.cfloat, None))
    with pytest.raises(p4.CheckpointError, match=r"`parametrizations.weight.original` .* must be real, got"):
        other.load_state_dict(one.state_dict())


def test_distributed_checkpoints(tmp_path: Path) -> None:
    """They write into the tensors of the model's own state, which has been checked before by then."""
    one, same = model_of(partial(p4.Invertible, rank=1)), model_of(partial(p4.Invertible, rank=1))
    other = model_of(partial(p4.UnitDeterminant, rank=1))
    distributed_checkpoint.save(one.state_dict(), checkpoint_id=tmp_path / "c")
    for model in (same, other):
        state = model.state_dict()
        distributed_checkpoint.load(state, checkpoint_id=tmp_path / "c")
        if model is other:
            with pytest.raises(
                p4.CheckpointError, match=r"must be of UnitDeterminant\(rank=1\), got one of Invertible"
            ):
                model.load_state_dict(state)
        else:
            model.load_state_dict(state)
            assert_unchanged(same, snapshot(one))


def test_a_plain_checkpoint_brings_no_identity_and_needs_none() -> None:
    model, plain = model_of(p4.Orthogonal), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    nn.init.orthogonal_(plain[1].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model(torch.ones(1, 4)), plain(torch.ones(1, 4)))
    assert identities(plain) == {} and list(identities(model)) == [f"1.parametrizations.weight.0.{KEY}"]


def test_states_are_plain_tensors() -> None:
    model, file = model_of(partial(p4.Invertible, rank=1)), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(isinstance(value, Tensor) for value in loaded.values())
    x = torch.ones(1, 4)
    assert torch.equal(torch.func.functional_call(model, loaded, (x,)), model(x))
    assert bool(model(x).isfinite().all()) and not hasattr(next(p4.sites(model)).perturbation, KEY)
