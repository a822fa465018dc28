"""The Trainer of transformers with two processes: ranks stay the same, resumed runs end where whole ones do."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretrained import examples, perturbed_llama, transformers
from torch import distributed as dist, multiprocessing

pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]
RANKS, STEPS, STOP = 2, 8, 4


def _work(rank: int, folder: str, port: int) -> None:
    """What a process does: a whole run, and one that goes on in its middle."""
    from p4torch.training import P4TrainerCallback

    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    arguments = transformers.TrainingArguments(
        f"{folder}/run",
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        save_steps=STOP,
        report_to=[],
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
    )
    states: dict[str, Any] = {}
    for name, resume in (("whole", None), ("resumed", f"{folder}/run/checkpoint-{STOP}")):
        model, callback = perturbed_llama(), P4TrainerCallback(every=3, rewarm=2)
        trainer = transformers.Trainer(model, arguments, train_dataset=examples(64), callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        assert callback.scheduler is not None and callback.scheduler.steps == STEPS and callback.merged > 0
        states[name] = model.state_dict()
    torch.save(states, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_and_resume_to_the_bit(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_work, (str(tmp_path), port), nprocs=RANKS)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS))
    for name, value in one["whole"].items():
        assert torch.equal(value, other["whole"][name]), name
        assert torch.equal(value, one["resumed"][name]), name
        assert torch.equal(value, other["resumed"][name]), name
