"""Freezing and unfreezing during training: what never trains stays frozen, a frozen site rests, the rest goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning
from tests.layers import hand_over
from tests.merging.steps import count
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

import p4torch as p4
from p4torch.training import MergeCallback

#: Rounding of a few float32 merges; a base that trains has a defect of 0.1 to 1.
ROUNDING = 1e-4
EVERY, WIDTH = 3, 4

Held = Callable[[nn.Module], list[dict[str, Any]]]
HELD: dict[str, Held] = {
    "everything": lambda model: [{"params": list(model.parameters())}],
    "groups": p4.parameter_groups,
    "what trains": lambda model: [{"params": [value for value in model.parameters() if value.requires_grad]}],
}


def model_of(**options: Any) -> nn.Sequential:
    """An orthogonal layer on the factored path, an invertible one, and an orthogonal kernel on the dense path."""
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Unflatten(1, (WIDTH, 1)), nn.Conv1d(WIDTH, WIDTH, 1)
    )
    for layer, property in ((model[0], p4.Orthogonal), (model[1], p4.Invertible), (model[3], p4.Orthogonal)):
        nn.init.eye_(layer.weight.data.flatten(1))
        p4.perturb(layer, "weight", property, rank=2, **options)
    return model


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x).flatten(1) - x.flip(-1)).square().mean().backward()
    optimizer.step()


def never_trained(model: nn.Module) -> list[Tensor]:
    """Copies of what moves at merges only."""
    return [
        value.detach().clone()
        for site in p4.sites(model)
        for value in (site.base, *site.perturbation.parameters())
        if value is site.base or all(value is not own for _, own in site.perturbation.own_parameters())
    ]


def assert_in_their_sets(model: nn.Module) -> None:
    for site in p4.sites(model):
        assert float(site.perturbation.defect(site.base).max()) <= ROUNDING, site.name
        if isinstance(site.perturbation, p4.Invertible):
            product = site.base.double() @ site.perturbation.tracked.inverse.double()
            assert (product - torch.eye(WIDTH)).abs().max() <= ROUNDING


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("when", ["before the optimizer", "before the scheduler", "in between", "every step"])
def test_requires_grad_true_trains_what_should_train(held: str, when: str) -> None:
    model = model_of()
    if when == "before the optimizer":
        model.requires_grad_(True)
    optimizer = torch.optim.AdamW(HELD[held](model), lr=1e-2, weight_decay=0.1)
    if when == "before the scheduler":
        model.requires_grad_(True)
    scheduler = p4.MergeScheduler(model, optimizer, every=EVERY)
    for index in range(4 * EVERY):
        if when == "every step" or (when == "in between" and index % EVERY == 1):
            model.requires_grad_(True)
        before = never_trained(model)
        step(model, optimizer, index)
        assert all(map(torch.equal, before, never_trained(model)))
        assert all(site.base.grad is None and not site.base.requires_grad for site in p4.sites(model))
        scheduler.step()
    assert scheduler.merged == 12 and scheduler.skipped == 0
    assert_in_their_sets(model)


def test_a_base_does_not_train_where_it_is_used_by_hand() -> None:
    """Without any forward pass of the module, and although it was unfrozen between the pass and the step."""
    layer = p4.perturb(nn.Linear(WIDTH, WIDTH), "weight", p4.Invertible, rank=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    p4.MergeScheduler(layer, optimizer, every=50).attach()
    (site,) = p4.sites(layer)
    before = never_trained(layer)
    for _ in range(3):
        layer.requires_grad_(True)
        y = site.perturbation.matmul(site.base, torch.randn(8, WIDTH))
        optimizer.zero_grad()
        (y.square().mean() - site.perturbation.logabsdet(site.base)).backward()
        optimizer.step()
    assert all(map(torch.equal, before, never_trained(layer)))
    assert bool(site.perturbation.get_parameter("u").any())


def test_directions_that_do_not_train_by_design_stay_so() -> None:
    model = model_of(train_directions=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=EVERY)
    for index in range(2 * EVERY):
        model.requires_grad_(False)
        model.requires_grad_(True)
        directions = [site.perturbation.get_parameter("v").clone() for site in p4.sites(model)]
        step(model, optimizer, index)
        for old, site in zip(directions, p4.sites(model), strict=True):
            assert torch.equal(old, site.perturbation.get_parameter("v"))
            assert list(site.trainable()) == [f"{site.name}.u"]
        scheduler.step()
    assert scheduler.merged == 6


# --- a frozen site rests ----------------------------------------------------------------------------------------


@pytest.fixture
def silent(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    yield
    assert [
        str(entry.message) for entry in recwarn if issubclass(entry.category, (p4.StallWarning, p4.RecoveryWarning))
    ] == []


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("options", [{}, {"rewarm": 2}, {"directions": "gradient"}, {"stagger": True}])
@pytest.mark.parametrize("frozen_at", [0, 1, EVERY, EVERY + 1])
def test_a_frozen_site_rests_and_the_others_go_on(held: str, options: dict[str, Any], frozen_at: int) -> None:
    model = model_of()
    optimizer = torch.optim.Adam(HELD[held](model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=EVERY, **options)
    first, others = model[0], (model[1], model[3])
    for index in range(8 * EVERY):
        if index == frozen_at:
            first.requires_grad_(False)
            resting = {name: value.clone() for name, value in first.state_dict().items()}
        if index == frozen_at + 4 * EVERY:
            for name, value in first.state_dict().items():
                assert torch.equal(value, resting[name]), name
            (model if index % 2 else first).requires_grad_(True)
        before = [layer.weight.detach().clone() for layer in others]
        step(model, optimizer, index)
        assert not any(torch.equal(old, layer.weight) for old, layer in zip(before, others, strict=True))
        scheduler.step()
    attempts = {site.name: int(site.perturbation.attempts) for site in p4.sites(model)}
    assert attempts == {"0.weight": 4, "1.weight": 8, "3.weight": 8}
    assert scheduler.skipped == 0
    assert_in_their_sets(model)
    sketch = next(p4.sites(model)).perturbation.sketch  # type: ignore[union-attr]
    assert sketch is None or len(sketch.parts) <= 1


@pytest.mark.usefixtures("silent")
def test_parameters_that_come_and_go_one_by_one() -> None:
    """Biases and single factors, in every order."""
    model = model_of()
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=2, rewarm=1)
    parameters = [value for value in model.parameters() if value.requires_grad]
    for index in range(64):
        bits = index ^ index >> 1  # in Gray's order one after the other changes
        for place, value in enumerate(parameters[:6]):
            value.requires_grad_(not bits >> place & 1)
        step(model, optimizer, index)
        scheduler.step()
    assert_in_their_sets(model)


def test_a_bad_batch_while_only_the_bias_trains() -> None:
    model = nn.Sequential(p4.perturb(nn.Linear(WIDTH, WIDTH), "weight", p4.Invertible))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = p4.MergeScheduler(model, optimizer, every=1)
    (site,) = p4.sites(model)
    for value in site.trainable().values():
        value.requires_grad_(False)
    step(model, optimizer, 0)
    scheduler.step()
    good = model[0].bias.detach().clone()
    with torch.no_grad():
        model[0].bias.fill_(torch.nan)
    with pytest.warns(p4.RecoveryWarning, match="bias"):
        count(scheduler)
    assert torch.equal(model[0].bias, good)


@pytest.mark.parametrize("pause", [4, 5, 6])
def test_a_resume_in_the_frozen_phase_is_the_same_run(pause: int) -> None:
    def run(model: nn.Module, scheduler: p4.MergeScheduler, start: int, stop: int) -> None:
        for index in range(start, stop):
            if index == 4:
                model[0].requires_grad_(False)  # type: ignore[index]
            if index == 10:
                model.requires_grad_(True)
            step(model, scheduler.optimizer, index)
            scheduler.step()

    def parts() -> tuple[nn.Module, Optimizer, p4.MergeScheduler]:
        model = model_of()
        optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
        return model, optimizer, p4.MergeScheduler(model, optimizer, every=EVERY, rewarm=2)

    whole, resumed = parts(), parts()
    run(whole[0], whole[2], 0, pause)
    hand_over(whole, resumed)
    if pause > 4:
        resumed[0][0].requires_grad_(False)  # type: ignore[index]
    run(whole[0], whole[2], pause, 16)
    run(resumed[0], resumed[2], pause, 16)
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name
    assert whole[2].reports == resumed[2].reports


def test_networks_merge_together_while_one_member_trains() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    network = p4.LipschitzNetwork(model, bound=4.0)
    optimizer = torch.optim.Adam(p4.parameter_groups(network), lr=1e-2)
    scheduler = p4.MergeScheduler(network, optimizer, every=2)
    for index in range(12):
        if index == 4:
            model[0].requires_grad_(False)
        if index == 8:
            model.requires_grad_(False)
        x = torch.randn(8, WIDTH)
        if index < 8:
            optimizer.zero_grad()
            network(x).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert [report.index for report in scheduler.reports.values()] == [4, 4]


def test_finalized_models_stay_frozen_where_they_were() -> None:
    model = model_of()
    model[0].requires_grad_(False)
    p4.finalize(model)
    assert [layer.weight.requires_grad for layer in (model[0], model[1], model[3])] == [False, True, True]


def test_copies_keep_their_bases_frozen() -> None:
    model = copy.deepcopy(model_of())
    model.requires_grad_(True)
    model(torch.randn(2, WIDTH)).sum().backward()
    assert all(site.base.grad is None for site in p4.sites(model))


def test_a_compiled_layer_keeps_its_base_frozen() -> None:
    model = model_of()
    compiled = torch.compile(model, backend="eager")
    model.requires_grad_(True)
    compiled(torch.randn(2, WIDTH)).sum().backward()
    assert all(site.base.grad is None for site in p4.sites(model))


# --- Lightning --------------------------------------------------------------------------------------------------


class Finetuned(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = model_of()
        self.head = nn.Linear(WIDTH, WIDTH)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        return (self.head(self.backbone(x).flatten(1)) - x.flip(-1)).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([value for value in self.parameters() if value.requires_grad], lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)]


@pytest.mark.usefixtures("silent")
@pytest.mark.filterwarnings("ignore:.*log_every_n_steps", "ignore:.*num_workers", "ignore:.*treespec")
@pytest.mark.parametrize("merges_first", [False, True])
def test_lightnings_backbone_finetuning(tmp_path: Path, merges_first: bool) -> None:
    module, merges = Finetuned(), MergeCallback(every=EVERY)
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_lr=1e-2, verbose=False)
    start = copy.deepcopy(module.backbone.state_dict())
    frozen: list[bool] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            now = module.backbone.state_dict()
            frozen.append(all(torch.equal(now[name], value) for name, value in start.items()))

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=4,
        callbacks=[*([merges, finetuning] if merges_first else [finetuning, merges]), Watch()],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    x = torch.randn(48, WIDTH)
    trainer.fit(module, DataLoader(TensorDataset(x), batch_size=8))  # 6 steps an epoch
    assert frozen == [True, True, False, False]
    assert (merges.merged, merges.skipped) == (3 * 4, 0)
    assert_in_their_sets(module)
    for site in p4.sites(module):
        assert bool(site.trainable()) and not site.base.requires_grad
