"""Merges under the real Trainer of Lightning, with what users have beside them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import p4torch as p4
from p4torch.training import MergeCallback

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec", "ignore:.*log_every_n_steps", "ignore:.*num_workers", "ignore:.*resum", "ignore:.*`ckpt_path`"
)

WIDTH, ROWS = 4, 96
#: Of micro-batches against their union, in float64.
ORDER = 1e-12
#: Rounding of a few merges in float32, after products in bfloat16.
ROUNDING = 1e-5


class Regression(pl.LightningModule):
    """y = x backwards, by an invertible layer and an orthogonal one."""

    def __init__(self, dtype: torch.dtype = torch.float32, clip: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        nn.init.eye_(self.backbone[1].weight)
        self.to(dtype)
        p4.perturb(self.backbone, "0.weight", p4.Invertible, rank=2)
        p4.perturb(self.backbone, "1.weight", p4.Orthogonal)
        self.head = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.clip, self.automatic_optimization = clip, clip is None

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        (x,) = batch
        loss = (self.head(self.backbone(x)) - x.flip(-1)).square().mean()
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(p4.parameter_groups(self), lr=1e-2, weight_decay=0.1)


def batches(size: int, dtype: torch.dtype = torch.float32, same: bool = False) -> DataLoader:
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype)
    if same:
        x = x[:size].repeat(ROWS // size, 1)
    return DataLoader(TensorDataset(x), batch_size=size)


def fit(path: Path, module: Regression, size: int = 8, callbacks: tuple[pl.Callback, ...] = (), **options: Any) -> Any:
    merges, checkpoint = MergeCallback(every=5, stagger=True, rewarm=2), options.pop("ckpt_path", None)
    data = batches(size, module.head.weight.dtype, options.pop("same", False))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[merges, *callbacks],
        default_root_dir=path,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **options},
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return merges.scheduler


def assert_equal_states(module: nn.Module, other: nn.Module) -> None:
    for (name, value), same in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, same), name


def test_accumulated_steps_are_those_of_the_union(tmp_path: Path) -> None:
    whole, parts = Regression(torch.float64), Regression(torch.float64)
    one = fit(tmp_path, whole, 32, gradient_clip_val=0.1)
    four = fit(tmp_path, parts, 8, accumulate_grad_batches=4, gradient_clip_val=0.1)
    assert one.steps == four.steps == 2 * ROWS // 32 and one.merged == four.merged > 0
    for (name, value), same in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(value, same, rtol=ORDER, atol=ORDER, msg=name)


def test_accumulation_that_changes_on_the_way(tmp_path: Path) -> None:
    schedule = GradientAccumulationScheduler({0: 1, 1: 3})
    assert fit(tmp_path, Regression(), callbacks=(schedule,)).steps == 12 + 4


def test_clipping_by_hand_is_clipping_by_the_trainer(tmp_path: Path) -> None:
    automatic, manual = Regression(), Regression(clip=0.1)
    fit(tmp_path, automatic, gradient_clip_val=0.1)
    scheduler = fit(tmp_path, manual)
    assert scheduler.steps == 24 and scheduler.merged > 0
    assert_equal_states(automatic, manual)


def test_mixed_precision_keeps_the_property(tmp_path: Path) -> None:
    module = Regression()
    scheduler = fit(tmp_path, module, precision="bf16-mixed", max_epochs=3)
    assert scheduler.merged > 0 and scheduler.skipped == 0
    weight = module.backbone[1].weight.detach()
    assert weight.dtype == torch.float32
    assert float((weight.T @ weight - torch.eye(WIDTH)).abs().max()) < ROUNDING


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}])
def test_checkpoints_in_the_middle_of_an_interval_resume_to_the_bit(options: dict[str, Any], tmp_path: Path) -> None:
    """After 7 steps: a step of re-warming is still to come, and the sites merge at different steps. All batches are the
    same, since Lightning begins a usual loader anew."""
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1)
    whole, resumed = Regression(), Regression()
    one = fit(tmp_path, whole, callbacks=(saving,), same=True, **options)
    checkpoint = min(tmp_path.glob("*step=7*.ckpt"))
    two = fit(tmp_path, resumed, ckpt_path=checkpoint, same=True, **options)
    assert_equal_states(whole, resumed)
    assert repr(one.state_dict()) == repr(two.state_dict())


def test_a_schedule_of_a_frozen_backbone_waits_in_silence(tmp_path: Path) -> None:
    module = Regression()
    start = copy.deepcopy(module.backbone.state_dict())
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=5, backbone_initial_lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", p4.StallWarning)
        scheduler = fit(tmp_path, module, callbacks=(finetuning,))
    assert scheduler.merged == 0 and scheduler.steps == 24
    assert all(torch.equal(value, start[name]) for name, value in module.backbone.state_dict().items())


class Tuned(Regression):
    lr = 1e-2
    batch_size = 4

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(p4.parameter_groups(self), lr=self.lr, weight_decay=0.1)

    def train_dataloader(self) -> DataLoader:
        return batches(self.batch_size)


@pytest.mark.parametrize("find", ["lr_find", "scale_batch_size"])
def test_finders_leave_no_trace(find: str, tmp_path: Path) -> None:
    """They train for some steps, and bring back what was there."""
    module, merges = Tuned(), MergeCallback(every=5)
    start = copy.deepcopy(module.state_dict())
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[merges], default_root_dir=tmp_path, **options)
    finder: Any = pl.tuner.Tuner(trainer)
    if find == "lr_find":
        finder.lr_find(module, num_training=20, update_attr=False)
    else:
        finder.scale_batch_size(module, max_trials=2, steps_per_trial=6)
        module.batch_size = Tuned.batch_size
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())
    trainer.fit(module)
    same, again = Tuned(), MergeCallback(every=5)
    pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[again], default_root_dir=tmp_path, **options).fit(same)
    assert_equal_states(module, same)
    assert repr(merges.state_dict()) == repr(again.state_dict())
