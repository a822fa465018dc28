"""Checkpoints that are damaged, and disks that are full."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from p4torch.errors import CheckpointError
from p4torch.runs.checkpoint import DIGEST, load_checkpoint, save_checkpoint, written
from p4torch.runs.digest import digest
from p4torch.runs.folder import append_line, write_json

#: Flipped bits, anywhere in a file.
FLIPS = 300


def state_of() -> dict[str, Any]:
    return {
        "step": 3,
        "x": torch.randn(40, 3),
        "half": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0),
        "of": {"name": "a", "rates": [0.1, float("nan")], "pair": (1, None), 7: torch.randn(2, dtype=torch.cfloat)},
    }


def same(one: Any, other: Any) -> bool:
    return digest(one) == digest(other)


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    """The second where it meets padding, or what the archive says beside."""
    path, state, draw, refused = tmp_path / "c.pt", state_of(), random.Random(0), 0
    save_checkpoint(path, state)
    whole = path.read_bytes()
    start = whole.index(state["x"].numpy().tobytes())
    places = [draw.randrange(8 * len(whole)) for _ in range(FLIPS)]
    places += [8 * (start + draw.randrange(480)) + draw.randrange(8) for _ in range(20)]  # in a tensor
    for index, place in enumerate(places):
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        try:
            got = load_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += index >= FLIPS
        else:
            assert index < FLIPS
            got = {key: value for key, value in got.items() if key in state}
            assert same(got, state)
    assert refused == 20


def test_a_checkpoint_is_a_plain_dict_with_one_entry_more(tmp_path: Path) -> None:
    path, state = tmp_path / "c.pt", state_of()
    save_checkpoint(path, state)
    assert same(load_checkpoint(path), state)
    raw = torch.load(path, weights_only=True)
    assert raw.pop(DIGEST) == digest(state)
    torch.save(raw, path)  # as an earlier version wrote it
    assert same(load_checkpoint(path), state)
    save_checkpoint(path, {**state, DIGEST: "old"})  # loaded by torch and saved again
    assert same(load_checkpoint(path), state)


def test_digests_tell_apart() -> None:
    x = torch.arange(4.0)
    different = [x, x.view(2, 2), x.double(), x.view(torch.int32), [x], [x, None], {"x": x}, {"y": x}, "x", 1, 1.0]
    assert len({digest(value) for value in different}) == len(different)
    assert digest(x[::2]) == digest(torch.tensor([0.0, 2.0]))
    assert digest((1, 2)) == digest([1, 2])
    z = torch.randn(3, dtype=torch.cfloat)
    assert digest(z.conj()) == digest(z.conj().resolve_conj()) != digest(z)


@contextmanager
def full(size: int) -> Iterator[None]:
    """No file may grow beyond this: what a process sees of a full disk, but for the name of the error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    path, table, log = tmp_path / "c.pt", tmp_path / "t.json", tmp_path / "log.jsonl"
    save_checkpoint(path, {"step": 1})
    write_json(table, [1])
    append_line(log, {"step": 1})
    with full(10_000):
        for name, write in (
            ("c.pt", lambda: save_checkpoint(path, {"step": 2, "x": torch.randn(100_000)})),
            ("t.json", lambda: write_json(table, list(range(10_000)))),
            ("log.jsonl", lambda: append_line(log, {"step": list(range(10_000))})),
        ):
            with pytest.raises(
                CheckpointError, match=rf"{name}` cannot be written \(File too large\); .*make room"
            ) as e:
                write()
            assert "\n" not in str(e.value)
    assert load_checkpoint(path) == {"step": 1} and table.read_text() == "[\n  1\n]\n"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.pt", "log.jsonl", "t.json"]


def test_the_reason_of_the_operating_system() -> None:
    """A device that is always full."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no such device")
    with pytest.raises(CheckpointError, match=r"`/dev/full` cannot be written \(No space left on device\)"):
        append_line(device, {"step": 1})
    with pytest.raises(CheckpointError, match=r"No space left on device"), written(device), device.open("wb") as file:
        torch.save({"x": torch.randn(10_000)}, file)
