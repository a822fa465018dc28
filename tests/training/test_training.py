"""Merges under Lightning, chunks of steps, and files that are whole or not there."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import p4torch as p4
from p4torch.errors import ArgumentError, CheckpointError
from p4torch.training import MergeCallback, folder, load_checkpoint, provenance, save_checkpoint
from p4torch.training.checkpoint import write_whole
from p4torch.training.chunks import ChunkedFit, warmup_cosine

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


def test_chunks_make_the_steps_of_a_plain_loop() -> None:
    class Gaussian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return -(x - self.mean).square().sum(-1)

    points = torch.randn(10, 16, 2, generator=torch.Generator().manual_seed(0))
    fit = ChunkedFit(Gaussian(), steps=10, learning_rate=0.1)
    optimizer = fit.configure_optimizers()
    for chunk in points.split(4):
        for batch in chunk:
            fit.step(batch, optimizer)
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


# --- files --------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_whole(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_checkpoints_never_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return os.mkdir, (str(tmp_path / "ran"),)

    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump(Evil(), file)
    torch.save({"state": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(CheckpointError, match="tensors and plain values"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_that_are_broken_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 3, "x": torch.ones(2)})
    assert load_checkpoint(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="must hold a dict, got list"):
        load_checkpoint(path)


def test_a_folder_that_cannot_be_written_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"`out` must be a folder that can be written, got .*file/run"):
        folder.writable_folder(tmp_path / "file" / "run")
    assert folder.writable_folder(tmp_path / "new" / "run").is_dir()
    assert not os.listdir(tmp_path / "new" / "run")


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    folder.write_json(tmp_path / "a.json", {"a": math.inf, "b": [math.nan, 1.5], "c": (1, 2)})
    assert folder.read_json(tmp_path / "a.json") == {"a": None, "b": [None, 1.5], "c": [1, 2]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"a\.json"):
        folder.read_json(tmp_path / "a.json")


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (50, 100, 150):
        folder.append_line(path, {"step": step, "loss": math.inf})
    with path.open("a") as file:
        file.write('{"step": 2')
    folder.keep_lines(path, 100)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [50, 100]


def test_provenance_says_what_a_reader_needs() -> None:
    record = provenance(seed=4)
    assert record["seed"] == 4 and record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["machine"]["cores"] >= 1 and record["machine"]["cpu"] and record["command"]
