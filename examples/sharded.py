"""A small LLaMA-style language model in the shards of FSDP2: its linear layers keep their singular values while they
train (or move by low-rank updates that are merged). A run that is killed goes on from its last checkpoint.

    torchrun --nproc-per-node 2 --max-restarts 3 -m examples.sharded --out runs/sharded
    torchrun --nproc-per-node 2 -m examples.sharded --property low-rank --out runs/low-rank
    torchrun --nproc-per-node 2 --max-restarts 1 -m examples.sharded --short --kill-at 12 --out runs/sharded-short

Kill a worker (`kill -9`), and torchrun starts all of them again: they go on from the last checkpoint and end, bit by
bit, where an undisturbed run does. The same command goes on with a run that was stopped, also with another number of
processes. In the end the plain weights, without p4torch, are in `model.safetensors`.

Source: Touvron et al. (2023), LLaMA, for the model; Qiu et al. (2025), POET, for rotations of both sides of a weight.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed as dist, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import p4torch as p4
from examples.language_model import BYTES, Text
from p4torch.parametrize.sites import counter_based_generator
from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint
from p4torch.runs.folder import write_json

PROPERTIES = ("fixed-singular-values", "low-rank")


@dataclass(frozen=True)
class Setting:
    """The size of everything; `batch` counts the windows of all processes together."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    context: int = 128
    batch: int = 32
    steps: int = 1000
    every: int = 50
    save: int = 100
    block: int = 32
    rank: int = 8
    rate: float = 2e-3


SHORT = Setting(width=32, depth=2, heads=2, context=16, batch=8, steps=20, every=5, save=5, block=8, rank=2)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(rotated(query), rotated(key), value, is_causal=True)
        return self.out(mixed.transpose(-3, -2).flatten(-2))


def rotated(x: Tensor) -> Tensor:
    """Pairs of coordinates of `(..., t, d)`, turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - two * angles.sin(), one * angles.sin() + two * angles.cos()], -1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + W₂ (SiLU(W₁ norm(x)) ∘ W₃ norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Logits `(m, t, 256)` of the next byte, from bytes `(m, t)`."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, setting.width)
        self.blocks = nn.Sequential(*(Block(setting.width, setting.heads) for _ in range(setting.depth)))
        self.norm, self.head = nn.RMSNorm(setting.width), nn.Linear(setting.width, BYTES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(x))))


def network(setting: Setting, kind: str) -> Llama:
    """The model, perturbed; the same in all processes."""
    torch.manual_seed(0)
    model = Llama(setting)
    for path, module in list(model.blocks.named_modules()):
        if isinstance(module, nn.Linear) and kind == "low-rank":
            p4.perturb(model.blocks, f"{path}.weight", p4.LowRankUpdate, rank=setting.rank)
        elif isinstance(module, nn.Linear):
            p4.perturb(model.blocks, f"{path}.weight", p4.FixedSingularValues, block=setting.block)
    return model


def sharded(model: Llama) -> Llama:
    """Each block by itself; what is tracked, and not read between merges, apart from what is."""
    for site in p4.sites(model):
        for child in site.perturbation.children():
            fully_shard(child)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


class Run:
    """The training of one process."""

    def __init__(self, setting: Setting, kind: str, out: Path) -> None:
        self.setting, self.kind, self.out = setting, kind, out
        self.rank, self.count, self.text = dist.get_rank(), dist.get_world_size(), Text()
        self.model = sharded(network(setting, kind))
        self.optimizer = torch.optim.AdamW(p4.parameter_groups(self.model), lr=setting.rate)
        self.merges = p4.MergeScheduler(self.model, self.optimizer, every=setting.every)
        self.step, self.losses = 0, list[float]()

    def advance(self) -> None:
        """One step: the windows are a function of its number, and each process takes its part."""
        generator = counter_based_generator(0, "batch", self.step)
        windows = self.text.batch(self.setting.batch, self.setting.context, generator).chunk(self.count)[self.rank]
        loss = F.cross_entropy(self.model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.merges.step()
        mean = loss.detach() / self.count
        dist.all_reduce(mean)
        self.losses.append(float(mean))
        self.step += 1

    def state(self) -> dict[str, Any]:
        weights, moments = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optimizer": moments}

    def save(self) -> None:
        """A checkpoint, which counts once it is whole."""
        folder = self.out / f"step-{self.step:06d}"
        save_shards(self.state(), checkpoint_id=folder)
        beside = {"merges": self.merges.state_dict(), "losses": self.losses}
        if self.rank == 0:
            save_checkpoint(folder / "beside.pt", beside)
            save_checkpoint(self.out / "latest.pt", {"step": self.step})
        dist.barrier()

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if not (self.out / "latest.pt").exists():
            return
        self.step = load_checkpoint(self.out / "latest.pt")["step"]
        folder, state = self.out / f"step-{self.step:06d}", self.state()
        load_shards(state, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        beside = load_checkpoint(folder / "beside.pt")
        self.merges.load_state_dict(beside["merges"])
        self.losses = beside["losses"]

    def finish(self) -> None:
        """The plain weights, and what was seen, written by the first process."""
        whole = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.rank == 0:
            model = network(self.setting, self.kind)
            model.load_state_dict(whole)
            save_file(p4.finalize(model).state_dict(), self.out / "model.safetensors")
            digest = hashlib.sha256((self.out / "model.safetensors").read_bytes()).hexdigest()
            seen = {"losses": self.losses, "merged": self.merges.merged, "skipped": self.merges.skipped}
            write_json(self.out / "metrics.json", {"sha256": digest, **seen})
            print(f"loss {self.losses[0]:.3f} -> {self.losses[-1]:.3f} nats a byte, weights {digest[:16]}")


def connect() -> None:
    """Join the other processes. The store of torchrun outlives a restart: each attempt has its own part of it, without
    the addresses of processes that are gone."""
    store, rank, count = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    attempt = f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="torchrun -m examples.sharded", description=__doc__, formatter_class=plain)
    parser.add_argument("--out", type=Path, default=Path("runs/sharded"), help="run folder (runs/sharded)")
    parser.add_argument(
        "--property", choices=PROPERTIES, default=PROPERTIES[0], help=f"of the layers ({PROPERTIES[0]})"
    )
    parser.add_argument("--short", action="store_true", help="a small model and a few steps, in seconds")
    parser.add_argument(
        "--kill-at", type=int, metavar="STEP", help="a process kills itself there once, to be restarted"
    )
    options = parser.parse_args(arguments)
    if "RANK" not in os.environ:
        parser.error("start it with torchrun, as the examples above show")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    connect()
    run = Run(SHORT if options.short else Setting(), options.property, options.out)
    run.resume()
    while run.step < run.setting.steps:
        run.advance()
        if (
            run.step == options.kill_at
            and run.rank == run.count - 1
            and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        if run.step % run.setting.save == 0:
            run.save()
    run.finish()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
