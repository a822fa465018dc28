"""What goes with FSDP2: how much it communicates and holds, checkpoints, mixed precision; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.merging.shards import Collectives, batch, build, optimizer_of, state_of, train
from tests.merging.test_sharding import EVERY, ORDER, shard, start
from torch import Tensor, distributed as dist, multiprocessing, nn
from torch.utils.checkpoint import checkpoint as recompute

import p4torch as p4
from p4torch.parametrize.sharding import local

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]
RANKS, STEPS = 2, 20
#: Rounding of bfloat16 in weights of size 1, over a few layers.
HALF = 0.05
#: What a process may hold of what one of DistributedDataParallel does.
MEMORY = 0.6


def communication(rank: int, folder: str) -> dict[str, Any]:
    """Sizes of the collectives of a step and of a merge: of plain layers, of perturbed ones, and of those whose tracked
    tensors are sharded by themselves."""
    from torch.distributed.fsdp import fully_shard

    def model(kind: str) -> nn.Sequential:
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64) for _ in range(2)]
        for layer, property in zip(layers, (p4.Invertible, p4.LowRankUpdate), strict=True):
            if kind != "plain":
                p4.perturb(layer, "weight", property, rank=1)
        for module in [site.perturbation.tracked for site in p4.sites(layers[0])] if kind == "apart" else []:
            fully_shard(module)
        return fully_shard(nn.Sequential(*(fully_shard(layer) for layer in layers)))

    sizes = {}
    for kind in ("plain", "perturbed", "apart"):
        sharded = model(kind)
        optimizer = torch.optim.Adam(sharded.parameters())
        scheduler = None if kind == "plain" else p4.MergeScheduler(sharded, optimizer, every=2)
        with Collectives() as step:
            sharded(torch.randn(4, 64)).square().mean().backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        optimizer.step()
        with Collectives() as merge:
            if scheduler is not None:
                assert len(scheduler.step()) == 2
        sizes[kind] = step.sizes, merge.sizes
    return sizes


def memory(rank: int, folder: str) -> tuple[int, int]:
    """Bytes of parameters and of Adam's state that a process holds, in shards and whole."""

    def held(model: nn.Module) -> int:
        optimizer = optimizer_of(model, "adam")
        x, y = batch(0)
        (model(x) - y).square().mean().backward()
        optimizer.step()
        entries = [entry for entries in optimizer.state.values() for entry in entries.values()]
        return sum(local(value).numel() * value.element_size() for value in (*model.parameters(), *entries))

    return held(shard(build())), held(build())


def _parts(model: nn.Module) -> tuple[Any, p4.MergeScheduler]:
    optimizer = optimizer_of(model, "adam")
    return optimizer, p4.MergeScheduler(model, optimizer, every=EVERY, rewarm=7)


def checkpoint(rank: int, folder: str) -> dict[str, Tensor]:
    """A run that is saved in the middle of an interval, and goes on."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model = shard(build())
    optimizer, scheduler = _parts(model)
    train(model, optimizer, scheduler, range(STEPS - 5), rank, RANKS)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=f"{folder}/dcp")
    merges = scheduler.state_dict()
    if rank == 0:
        torch.save(merges, f"{folder}/merges.pt")  # the same everywhere
    train(model, optimizer, scheduler, range(STEPS - 5, 2 * STEPS), rank, RANKS)
    return state_of(model, optimizer)


def resumed(model: nn.Module, folder: str, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """The same run from its checkpoint on, with any number of processes."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    optimizer, scheduler = _parts(model)
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=f"{folder}/dcp")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    scheduler.load_state_dict(torch.load(f"{folder}/merges.pt", weights_only=True))
    train(model, optimizer, scheduler, range(STEPS - 5, 2 * STEPS), rank, ranks)
    return state_of(model, optimizer)


def loaded(model: nn.Module, folder: str) -> nn.Module:
    """A model that had no values, with those of the checkpoint."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=f"{folder}/dcp")
    set_model_state_dict(model, state["model"])
    return model


def mixed_precision(rank: int, folder: str) -> dict[str, Tensor]:
    """Bases in float32, computing in bfloat16."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = build()
    for site in p4.sites(model):
        for child in site.perturbation.children():  # in the precision that they have
            fully_shard(child)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model[::2]:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizer, scheduler = _parts(model)
    train(model, optimizer, scheduler, range(STEPS), rank, RANKS)
    return state_of(model, optimizer)


class Recomputed(nn.Sequential):
    """Activations are computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = recompute(layer, x, use_reentrant=False)
        return x


def recomputed(rank: int, folder: str) -> dict[str, Tensor]:
    """With activation checkpointing."""
    model = shard(Recomputed(*build()))
    optimizer, scheduler = _parts(model)
    train(model, optimizer, scheduler, range(STEPS), rank, RANKS)
    return state_of(model, optimizer)


def compiled(rank: int, folder: str) -> dict[str, Tensor]:
    """Two layers compiled, each by itself."""
    model = build()
    for index in (4, 8):
        model[index].compile(backend="aot_eager", fullgraph=True)
    optimizer, scheduler = _parts(shard(model))
    train(model, optimizer, scheduler, range(STEPS), rank, RANKS)
    return state_of(model, optimizer)


def together(rank: int, folder: str) -> dict[str, Tensor]:
    """Sites that merge together."""
    model = joint()
    shard(model.model)  # type: ignore[arg-type]
    optimizer, scheduler = _parts(model)
    train(model, optimizer, scheduler, range(STEPS), rank, RANKS)
    return state_of(model, optimizer)


def joint() -> p4.JointMerge:
    return p4.JointMerge(build())


def merged_at_once(rank: int, folder: str) -> dict[str, Tensor]:
    """An evaluation leaves a model whole; `p4.merge` works all the same."""
    model = shard(build())
    with torch.no_grad():
        for site in p4.sites(model):
            for value in site.perturbation.parameters(recurse=False):
                local(value).add_(0.01)
        before = model(batch(0)[0])
        reports = p4.merge(model)
        after = model(batch(0)[0])
        optimizer, _ = _parts(model)  # after an evaluation, too
    assert all(report.ok for report in reports)
    return {"before": before, "after": after, **state_of(model, optimizer)}


def refusals(rank: int, folder: str) -> dict[str, str]:
    """The messages of what is refused when it is set up."""
    torch.manual_seed(0)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (RANKS,))

    def schedule(model: nn.Module, **options: Any) -> None:
        p4.MergeScheduler(model, torch.optim.Adam(model.parameters()), **options)

    def perturbed(property: Any = p4.LowRankUpdate, **options: Any) -> nn.Module:
        return p4.perturb(nn.Linear(4, 4), "weight", property, **options)

    def tensor_parallel() -> None:
        layer: Any = perturbed(rank=1)
        chain = layer.parametrizations.weight
        chain.original = nn.Parameter(distribute_tensor(chain.original.detach(), mesh, [Shard(0)]), requires_grad=False)
        schedule(layer)

    def replicated() -> None:
        layer = fully_shard(perturbed(rank=1))
        bias: Any = layer.bias
        layer.bias = nn.Parameter(distribute_tensor(torch.zeros(4), bias.device_mesh, [Replicate()]))
        schedule(layer)

    def sharded_later() -> None:
        torch.manual_seed(0)
        layer = perturbed(rank=1)
        scheduler = p4.MergeScheduler(layer, optimizer := torch.optim.Adam(layer.parameters()), every=1)
        fully_shard(layer)
        optimizer.step()
        scheduler.step()

    def other_models() -> None:
        torch.manual_seed(rank)
        schedule(fully_shard(perturbed(rank=1)))

    cases: dict[str, Callable[[], Any]] = {
        "models": other_models,
        "tensor parallel": tensor_parallel,
        "replicated": replicated,
        "fsdp1": lambda: schedule(
            FullyShardedDataParallel(perturbed(rank=1), use_orig_params=True, device_id=torch.device("cpu"))
        ),
        "finalize fsdp1": lambda: p4.finalize(
            FullyShardedDataParallel(perturbed(rank=1), use_orig_params=True, device_id=torch.device("cpu"))
        ),
        "finalize": lambda: p4.finalize(fully_shard(perturbed(rank=1))),
        "perturb": lambda: p4.perturb(fully_shard(nn.Linear(4, 4)), "weight", p4.LowRankUpdate),
        "every step": lambda: schedule(fully_shard(perturbed(p4.Invertible, rank=1, max_update_norm=1.0))),
        "gradient": lambda: schedule(fully_shard(perturbed(rank=1)), directions="gradient"),
        "group": lambda: schedule(fully_shard(perturbed(rank=1)), process_group=dist.new_subgroups(1)[0]),
        "later": sharded_later,
    }
    messages = {}
    for name, case in cases.items():
        try:
            case()
        except (p4.ArgumentError, p4.OptimizerError) as error:
            messages[name] = str(error)
    return messages


CASES = (communication, memory, checkpoint, mixed_precision, recomputed, compiled, together, merged_at_once, refusals)


def _work(rank: int, folder: str) -> None:
    start(rank, RANKS, folder)
    outcome = {case.__name__: case(rank, folder) for case in CASES}
    outcome["resumed"] = resumed(shard(build(seed=1)), folder, rank, RANKS)
    with torch.device("meta"):
        deferred = shard(build(seed=1))
    outcome["deferred"] = resumed(loaded(deferred.to_empty(device="cpu"), folder), folder, rank, RANKS)
    torch.save(outcome, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_work, args=(str(path),), nprocs=RANKS)
    return path


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_a_step_has_the_collectives_of_the_plain_model_and_a_merge_two(outcomes: list[dict[str, Any]]) -> None:
    """And no more bytes, if what is tracked and not used between merges is sharded by itself."""
    sizes = outcomes[0]["communication"]
    plain, _ = sizes["plain"]
    for kind in ("perturbed", "apart"):
        step, merge = sizes[kind]
        assert len(step) == len(plain) > 0
        assert len(merge) == 2
    assert sum(sizes["apart"][0]) < sum(plain) < sum(sizes["perturbed"][0])


def test_a_process_holds_its_share(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        sharded, complete = outcome["memory"]
        assert sharded <= MEMORY * complete


def test_a_checkpoint_resumes_with_as_many_processes_or_with_one(folder: Path, outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        _assert_equal(outcome["resumed"], outcome["checkpoint"])
        _assert_equal(outcome["deferred"], outcome["checkpoint"])
    alone = resumed(build(seed=1), str(folder))
    for name, value in outcomes[0]["checkpoint"].items():
        torch.testing.assert_close(alone[name], value, rtol=ORDER, atol=ORDER)


def test_mixed_precision_keeps_bases_in_single_precision(outcomes: list[dict[str, Any]]) -> None:
    _assert_equal(outcomes[0]["mixed_precision"], outcomes[1]["mixed_precision"])
    expected = alone(build())
    for name, value in outcomes[0]["mixed_precision"].items():
        assert value.dtype == expected[name].dtype
        if name.endswith("original"):
            torch.testing.assert_close(value, expected[name], rtol=HALF, atol=HALF)


@pytest.mark.parametrize("case", ["recomputed", "compiled", "together"])
def test_other_uses_train_as_in_one_process(outcomes: list[dict[str, Any]], case: str) -> None:
    """Layers that are recomputed, or compiled; sites that merge together."""
    expected = alone(joint() if case == "together" else build())
    for outcome in outcomes:
        for name, value in expected.items():
            torch.testing.assert_close(outcome[case][name], value, rtol=ORDER, atol=ORDER)


def alone(model: nn.Module) -> dict[str, Tensor]:
    optimizer, scheduler = _parts(model)
    train(model, optimizer, scheduler, range(STEPS))
    return state_of(model, optimizer)


def test_merges_outside_of_a_schedule(outcomes: list[dict[str, Any]]) -> None:
    _assert_equal(outcomes[0]["merged_at_once"], outcomes[1]["merged_at_once"])
    state = outcomes[0]["merged_at_once"]
    torch.testing.assert_close(state["after"], state["before"], rtol=ORDER, atol=ORDER)
    assert int(state["0.parametrizations.weight.0.attempts"]) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensor parallel", "tensor parallelism"),
        ("replicated", "first dimension"),
        ("fsdp1", "FSDP1"),
        ("finalize fsdp1", "FSDP1"),
        ("finalize", "full_state_dict=True"),
        ("perturb", "before `fully_shard`"),
        ("every step", "shorten B after every step"),
        ("gradient", "'random' for shards"),
        ("group", "over which the model is sharded"),
        ("models", "made alike in all processes"),
        ("later", "with which the MergeScheduler was made"),
    ],
)
def test_refused_when_it_is_set_up(outcomes: list[dict[str, Any]], name: str, words: str) -> None:
    for outcome in outcomes:
        assert words in outcome["refusals"][name]


def _assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
