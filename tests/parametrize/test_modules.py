"""Every module of the table, from `perturb` to `finalize`: the promises do not depend on what the tensor belongs to."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.modules import MODULES, Row
from torch import Tensor, nn
from torch.nn.utils import parametrize

import p4torch as p4

#: Outputs of float32, of size about 1, that differ by the order of the same few sums.
ROUNDING = 1e-6
#: A merge rounds the base once more, and may correct it.
MERGED = 5e-6
#: Defect of a base in float32 after a few merges.
DEFECT = 1e-5
EVERY = 3
#: With torch 2.6, export does not follow what a recurrent layer does when its weights are set.
OLD_EXPORT = torch.__version__.startswith("2.6.")


@pytest.fixture(params=list(MODULES))
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing of torch's own, either
        warnings.simplefilter("ignore", p4.ProjectionWarning)
        for known in ("The tensor attributes self._flat_weights", "LSTM with projections"):  # of plain layers, too
            warnings.filterwarnings("ignore", known, UserWarning)
        yield MODULES[request.param]


def output_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    output = module(*inputs)
    while isinstance(output, tuple):
        output = output[0]
    return output


def site_of(model: nn.Module) -> p4.Site:
    (site,) = p4.sites(model)
    return site


@torch.no_grad()
def moved(model: nn.Module) -> nn.Module:
    for site in p4.sites(model):
        for _, value in site.perturbation.own_parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


def assert_close(got: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    assert got.shape == expected.shape
    size = max(1.0, float(expected.detach().abs().max()))
    assert float((got - expected).detach().abs().max()) <= tolerance * size


def test_trains_and_merges(row: Row) -> None:
    model, inputs = row.perturbed(), row.inputs()
    site = site_of(model)
    assert site.name == row.tensor_name and site.base.shape == row.shape
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=EVERY)
    target, losses = torch.randn_like(output_of(model, inputs)), []
    for step in range(12):
        loss = (output_of(model, inputs) - target).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in site.perturbation.own_parameters():
            assert value.grad is not None, name
            assert step % EVERY == 0 or bool(value.grad.any()), name  # at U = 0, V moves nothing
        assert site.base.grad is None
        before = output_of(model, inputs).detach()
        if scheduler.step():
            assert_close(output_of(model, inputs), before, MERGED)
    assert scheduler.merged > 0  # `Invertible` may refuse some of a stack
    assert scheduler.merged + scheduler.skipped == 12 // EVERY * site.perturbation.skips.numel()
    assert losses[-1] < losses[0]
    assert float(site.perturbation.defect(site.base).max()) <= DEFECT


def test_evaluation_agrees_with_training(row: Row) -> None:
    model, inputs = moved(row.perturbed()), row.inputs()
    expected = output_of(model.train(), inputs)
    assert_close(output_of(model.eval(), inputs), expected)
    with torch.no_grad():
        assert_close(output_of(model, inputs), expected)  # the fast path of attention


def test_finalize_gives_back_the_plain_module(row: Row) -> None:
    plain, model, inputs = row.make(), moved(row.perturbed()), row.inputs()
    p4.MergeScheduler(model, torch.optim.Adam(p4.parameter_groups(model)))
    expected = output_of(model, inputs).detach()
    parameters = dict(model.named_parameters())
    assert p4.finalize(model) is model
    assert_close(output_of(model, inputs), expected)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        assert module.__dict__.keys() == other.__dict__.keys()
        assert not module._load_state_dict_pre_hooks and not parametrize.is_parametrized(module)
    named = list(model.named_parameters())
    assert [name for name, _ in named] == [name for name, _ in plain.named_parameters()]
    for (name, value), other in zip(named, plain.parameters(), strict=True):
        assert type(value) is nn.Parameter and value.requires_grad and value.is_leaf
        assert (value.shape, value.stride(), value.storage_offset()) == (other.shape, other.stride(), 0)
        assert value is parameters.get(name, value)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output_of(plain, inputs), output_of(model, inputs))


def test_a_finalized_module_is_pickled_exported_and_copied(row: Row) -> None:
    model, inputs = moved(row.perturbed()), row.inputs()
    output_of(model, inputs)
    p4.finalize(model).eval()
    expected = output_of(model, inputs)
    file = io.BytesIO()
    torch.save(model, file)
    references = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(io.BytesIO(file.getvalue()), weights_only=False),
    ]
    if not (OLD_EXPORT and any(isinstance(module, nn.RNNBase) for module in model.modules())):
        references.append(torch.export.export(model, inputs).module())
    for reference in references:
        assert_close(output_of(reference, inputs), expected)


def test_checkpoints(row: Row) -> None:
    model, inputs = moved(row.perturbed()), row.inputs()
    p4.merge(model, force=True)
    expected = output_of(moved(model), inputs)
    reference = row.perturbed()
    reference.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output_of(reference, inputs), expected)
    plain = p4.finalize(copy.deepcopy(reference))
    other = moved(row.perturbed())
    other.load_state_dict(plain.state_dict(), strict=True)  # and B is reset
    assert_close(output_of(other, inputs), expected, MERGED)
    site = site_of(other)
    assert site.base.shape == row.shape and torch.equal(site.perturbation(site.base), site.base)


def test_assignment(row: Row) -> None:
    model, inputs = row.perturbed(), row.inputs()
    source = site_of(moved(row.perturbed()))
    weight = getattr(source.module, source.tensor_name).detach()
    site = site_of(model)
    setattr(site.module, site.tensor_name, weight)
    assert_close(getattr(site.module, site.tensor_name), weight, MERGED)
    assert bool(output_of(model, inputs).isfinite().all())
    with pytest.raises(p4.ArgumentError, match="`tensor` must be of shape"):
        setattr(site.module, site.tensor_name, torch.zeros(2, 2))
    assert_close(getattr(site.module, site.tensor_name), weight, MERGED)


def test_copies_are_independent(row: Row) -> None:
    model, inputs = moved(row.perturbed()), row.inputs()
    expected = output_of(model, inputs)
    expected.sum().backward()
    reference = copy.deepcopy(model)
    assert torch.equal(output_of(reference, inputs), expected)
    p4.finalize(reference)
    assert_close(output_of(reference, inputs), expected)
    site = site_of(model)
    assert getattr(site.module, site.tensor_name).requires_grad  # the original still has its tensor
    assert torch.equal(output_of(model, inputs), expected)


@pytest.mark.slow
def test_compiles(row: Row) -> None:
    torch.compiler.reset()
    warnings.simplefilter("ignore")  # dynamo works with warnings of its own
    model, inputs = moved(row.perturbed()), row.inputs()
    whole = not isinstance(model, nn.RNNBase)  # torch compiles around recurrent layers
    compiled = torch.compile(model, fullgraph=whole, backend="aot_eager")
    assert_close(output_of(compiled, inputs), output_of(model, inputs))
    output_of(compiled, inputs).sum().backward()
    p4.merge(model, force=True)
    assert_close(output_of(compiled, inputs), output_of(model, inputs))


def test_the_page_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "modules.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
