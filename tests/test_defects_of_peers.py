"""One test for each defect of the original P4Inv implementation, and for bugs of others that we could repeat."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests import layers
from tests.layers import b_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import p4torch as p4
from p4torch.merging import optimizer_state as memory
from p4torch.training import WeightAverage


def layer_of(width: int = 4, **options: Any) -> nn.Linear:
    return layers.layer_of(width, nn.init.eye_, **options)


@torch.no_grad()
def move(layer: nn.Module, size: float = 0.1) -> None:
    b_of(layer).u.add_(size * torch.randn_like(b_of(layer).u))


def snapshot(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def test_switching_modes_changes_nothing_and_consumes_no_randomness() -> None:
    layer = layer_of()
    move(layer)
    before, state = snapshot(layer), torch.get_rng_state()
    layer.eval()
    layer(torch.ones(1, 4))
    layer.train()
    layer.train(False)
    layer.train()
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_evaluation_uses_the_perturbation() -> None:
    layer = layer_of()
    move(layer)
    checkpoint, x = layer.state_dict(), torch.randn(3, 4)
    assert torch.equal(layer.eval()(x), layer.train()(x))
    loaded = layer_of().eval()
    loaded.load_state_dict(checkpoint)
    assert torch.equal(loaded(x), layer(x))
    assert not torch.allclose(loaded(x), x + layer.bias)


def test_ten_times_the_identity_does_not_overflow() -> None:
    base = 10 * torch.eye(64)
    perturbation = p4.Invertible(base, rank=1, scale=1.0)
    exact = 64 * torch.log(torch.tensor(10.0, dtype=torch.float64))
    assert abs(float(perturbation.logabsdet(base).detach()) - float(exact)) < 1e-4
    with torch.no_grad():
        perturbation.u.copy_(0.1 * torch.randn(64, 1))
    assert perturbation.merge(base, force=True).ok
    assert bool(perturbation.logabsdet(base).isfinite())


def test_a_singular_update_is_never_forced() -> None:
    layer = layer_of()
    perturbation = b_of(layer)
    with torch.no_grad():
        perturbation.u.copy_(-perturbation.v / perturbation.v.square().sum())
    for _ in range(30):
        (report,) = p4.merge(layer, force=True)
        assert not report.ok
    assert bool(perturbation.tracked.inverse.isfinite().all())


def test_a_drifted_inverse_is_noticed_and_repaired() -> None:
    layer = layer_of(64)
    site = next(p4.sites(layer))
    with torch.no_grad():
        b_of(layer).tracked.inverse.add_(torch.randn(64, 64))  # far outside where the iteration converges
    move(layer, 0.01)
    assert site.merge().ok
    residual = site.base @ b_of(layer).tracked.inverse - torch.eye(64)
    assert float(residual.abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore::p4torch.RecoveryWarning")
def test_a_nan_batch_does_not_poison_the_optimizer() -> None:
    layer = layer_of(rank=2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=10)
    target = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for step in range(1500):
        x = torch.full((8, 4), torch.nan) if step == 5 else torch.randn(8, 4)
        loss = (layer(x) - target * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert loss.detach() < 1e-4


def test_a_rank_one_product_costs_about_one_product() -> None:
    n, x = 512, torch.randn(256, 512)

    def flops(layer: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x)
        return counter.get_total_flops()

    both_factors = 4 / n
    assert flops(layer_of(n)) <= (1 + both_factors) * flops(nn.Linear(n, n))


def test_no_buffer_carries_a_graph() -> None:
    layer = layer_of()
    move(layer)
    perturbation = b_of(layer)
    base = next(p4.sites(layer)).base
    (layer(torch.randn(2, 4)).sum() + perturbation.logabsdet(base)).backward()
    assert not any(value.requires_grad for value in layer.buffers())
    copy.deepcopy(layer)
    for decay in (None, 0.9):
        WeightAverage(layer, decay=decay).update()


def test_no_merge_between_forward_and_backward() -> None:
    """A scheduler merges after the optimizer's step only; a merge by hand in between is refused by autograd."""
    layer = layer_of()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
    p4.MergeScheduler(layer, optimizer, every=1).attach()
    for _ in range(3):
        loss = layer(torch.randn(2, 4)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss = layer(torch.randn(2, 4)).square().sum()
    p4.merge(layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "factory",
    [
        lambda p: torch.optim.RMSprop(p),
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ],
)
def test_other_optimizers_keep_everybody_elses_state(factory: Any) -> None:
    layer = layer_of()
    optimizer = factory(layer.parameters())
    layer(torch.randn(2, 4)).square().sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state[layer.bias])
    memory.reset(optimizer, b_of(layer).v)
    for key, value in optimizer.state[layer.bias].items():
        assert torch.equal(value, before[key])


def test_directions_do_not_depend_on_the_ranks_own_randomness() -> None:
    layer = layer_of()
    reference = copy.deepcopy(layer)
    torch.manual_seed(1)
    p4.merge(layer)
    torch.manual_seed(2)
    p4.merge(reference)
    assert torch.equal(b_of(layer).v, b_of(reference).v)


@pytest.mark.parametrize("form", ["additive", "exponential"])
def test_training_step_compiles_without_a_graph_break(form: str) -> None:
    torch.compiler.reset()
    layer = layer_of(form=form)
    move(layer)

    site = next(p4.sites(layer))

    def objective(x: Tensor) -> Tensor:
        return layer(x).square().sum() - site.perturbation.logabsdet(site.base)

    x = torch.randn(3, 4)
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), objective(x))
    compiled(x).backward()


# --- other peers ------------------------------------------------------------------------------------------------


def test_nothing_stale_after_loading() -> None:
    layer, other = layer_of(), layer_of()
    move(other)
    p4.merge(other)
    move(other)
    base = next(p4.sites(layer)).base
    b_of(layer).inverse(base)
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(b_of(layer).inverse(base), torch.linalg.inv(layer.weight))


def test_a_second_backward_works() -> None:
    layer = layer_of()
    move(layer)
    base = next(p4.sites(layer)).base
    for _ in range(2):
        (b_of(layer).inverse(base).sum() + layer(torch.ones(1, 4)).sum()).backward()


def test_evaluation_leaves_all_state_alone() -> None:
    layer = layer_of()
    move(layer)
    before = snapshot(layer)
    layer.eval()
    site = next(p4.sites(layer))
    with torch.no_grad():
        for method in ("inverse", "logabsdet", "sign"):
            getattr(site.perturbation, method)(site.base)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_late_first_gradient() -> None:
    """The site joins after the optimizer has stepped for others: its state appears only later."""
    model = nn.ModuleList([nn.Linear(4, 4), layer_of()])
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = p4.MergeScheduler(model, optimizer, every=2)
    for step in range(8):
        optimizer.zero_grad()
        model[0 if step < 4 else 1](torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    assert optimizer.state[b_of(model[1]).u]


def test_no_dead_start() -> None:
    layer = layer_of()
    layer(torch.randn(8, 4)).square().sum().backward()
    assert b_of(layer).u.grad.abs().min() > 0
