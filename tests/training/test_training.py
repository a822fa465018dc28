"""Merges under Lightning, and the plain loop."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.training import Fit, MergeCallback
from p4torch.training.steps import warmup_cosine

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:.*log_every_n_steps", "ignore:.*num_workers")


class Regression(pl.LightningModule):
    """y = T x by a perturbed linear layer and a plain one, with ordinary (automatic) optimization."""

    def __init__(self, perturbed: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        if perturbed:
            p4.perturb(self.first, "weight", p4.Invertible, rank=2, scale=1.0)
        self.second = nn.Linear(4, 4)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (self.second(self.first(x)) - y).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([value for value in self.parameters() if value.requires_grad], lr=1e-2)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(56, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.flip(-1)), batch_size=8)  # 7 steps an epoch


def trainer(path: Path, epochs: int, callback: MergeCallback, **options: object) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[callback],
        default_root_dir=path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def trained(path: Path, epochs: int, checkpoint: Path | None = None, save: Path | None = None):
    torch.manual_seed(0)
    model, callback = Regression(), MergeCallback(every=5, seed=3)
    run = trainer(path, epochs, callback)
    run.fit(model, data(), ckpt_path=checkpoint, weights_only=True)
    if save is not None:
        run.save_checkpoint(save)
    return model, callback


def test_callback_without_an_interval_asks_the_perturbations(tmp_path: Path) -> None:
    model, callback = Regression(), MergeCallback()
    next(p4.sites(model)).perturbation.interval = 3
    trainer(tmp_path, 2, callback).fit(model, data())
    assert callback.merged == 4  # 14 steps


def test_callback_merges_and_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = Regression()
    model, callback = trained(tmp_path, 4)
    assert callback.scheduler is not None and callback.scheduler.steps == 28
    assert callback.merged + callback.skipped == 28 // 5
    x, y = next(iter(data()))
    assert model.training_step([x, y], 0) < before.training_step([x, y], 0) / 2


def test_callback_resumes_bit_exactly_in_the_middle_of_an_interval(tmp_path: Path) -> None:
    whole, whole_callback = trained(tmp_path, 4)
    checkpoint = tmp_path / "half.ckpt"
    trained(tmp_path, 2, save=checkpoint)  # 14 steps: 4 after a merge
    resumed, callback = trained(tmp_path, 4, checkpoint=checkpoint)
    for (name, expected), value in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, value), name
    assert callback.state_dict()["steps"] == whole_callback.state_dict()["steps"]
    assert callback.merged == whole_callback.merged


def test_callback_merges_a_network_together(tmp_path: Path) -> None:
    model, callback = Regression(perturbed=False), MergeCallback(every=5, stagger=True)
    start = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    nn.init.orthogonal_(start[0].weight)
    nn.init.zeros_(start[2].weight)
    model.first = p4.LipschitzNetwork(start, bound=1.0)
    trainer(tmp_path, 4, callback).fit(model, data())
    assert (callback.merged, callback.skipped) == (2 * (28 // 5), 0)
    assert model.first.defect() == 0 and model.first.model[2].weight.any()


def test_callback_counts_optimizer_steps_not_batches(tmp_path: Path) -> None:
    callback = MergeCallback(every=2)
    trainer(tmp_path, 1, callback, accumulate_grad_batches=3).fit(Regression(), data())  # 7 batches, 3 steps
    assert callback.scheduler is not None and callback.scheduler.steps == 3
    assert callback.merged == 1


def test_callback_detaches_at_the_end(tmp_path: Path) -> None:
    model, callback = trained(tmp_path, 1)
    assert callback.scheduler is not None
    optimizer, steps = callback.scheduler.optimizer, callback.scheduler.steps
    model.training_step(next(iter(data())), 0).backward()
    optimizer.step()
    assert callback.scheduler.steps == steps


def test_callback_refuses_what_it_cannot_merge(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`model` must be a module with at least one perturbed"):
        trainer(tmp_path, 1, MergeCallback()).fit(Regression(perturbed=False), data())
    with pytest.raises(ArgumentError, match="`optimizer` must be an index below 1, got 1"):
        trainer(tmp_path, 1, MergeCallback(optimizer=1)).fit(Regression(), data())
    with pytest.raises(ArgumentError, match="`every` must be an integer >= 1, got 0"):
        MergeCallback(every=0)


def test_fit_makes_the_steps_of_torch_adam() -> None:
    class Gaussian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return -(x - self.mean).square().sum(-1)

    points = torch.randn(10, 16, 2, generator=torch.Generator().manual_seed(0))
    fit = Fit(Gaussian(), steps=10, learning_rate=0.1)
    for chunk in points.split(4):
        fit.train(chunk)
    plain = Gaussian()
    reference = torch.optim.Adam(plain.parameters(), lr=0.1)
    for step, batch in enumerate(points):
        reference.param_groups[0]["lr"] = 0.1 * (step + 1) / 100
        reference.zero_grad()
        (-plain(batch)).mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), fit.clip)
        reference.step()
    torch.testing.assert_close(fit.flow.mean, plain.mean)
    assert fit.done == 10


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    factors = [warmup_cosine(step, 1000) for step in range(1000)]
    assert factors[0] == 0.01 and factors[99] == 1.0
    assert all(early < late for early, late in itertools.pairwise(factors[:100]))
    assert all(early > late for early, late in itertools.pairwise(factors[100:]))
    assert warmup_cosine(550, 1000) == pytest.approx(0.5) and factors[-1] < 1e-5
