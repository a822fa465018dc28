"""The run folder: files written whole, a log of one JSON object a line, and a check before the work starts."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.runs.checkpoint import write_whole, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def writable_folder(path: Path, argument: str = "out") -> Path:
    """Make the folder and prove that a file can be written there, before hours of work and not after.

    Raises:
        ArgumentError: naming the argument and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable-"):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ArgumentError.of(argument, "a folder that can be written", f"{path} ({reason})") from error
    return path


def prepare(out: Path, fields: dict[str, Any], *, resume: bool) -> None:
    """Make the run folder and write its configuration, or find that it fits.

    Raises:
        ArgumentError: the folder cannot be written, or holds something and this is not a resume.
        CheckpointError: it holds a run with another configuration.
    """
    writable_folder(out)
    config = out / "config.json"
    if resume and config.exists():
        wrong = differences(read_json(config), fields)
        if wrong:
            raise CheckpointError(f"`out` must hold a run with this configuration: {config}: {wrong}")
        return
    if any(out.iterdir()):
        expected = "a new or empty folder" if not resume else "the folder of a run (with a config.json)"
        hint = "" if resume else ", which is not empty (--resume goes on with a run)"
        raise ArgumentError.of("out", expected, f"{out}{hint}")
    write_json(config, fields)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all. Numbers that are not finite become null."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_compact(path: Path, value: Any) -> None:
    """The same in one line: curves would take a line a number otherwise."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Raises CheckpointError, naming the file, if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"`{path}` must be a readable JSON file: {error}") from error


def stored(path: Path, names: Iterable[str], kind: str) -> dict[str, Any]:
    """The named values of the config.json of such a run, lists as tuples. Raises CheckpointError without one."""
    values = read_json(path)
    try:
        return {name: tuple(value) if isinstance(value := values[name], list) else value for name in names}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"`{path}` must be the configuration of a {kind} run, lacks {error}") from error


def write_figure(path: Path, figure: Figure) -> Path:
    """Write `path` with the endings .pdf and .png, each whole or not at all; returns the latter."""
    for ending in ("pdf", "png"):
        target = path.with_suffix(f".{ending}")
        write_whole(target, lambda temporary, kind=ending: figure.savefig(temporary, format=kind, dpi=200))  # type: ignore[misc]
    return path.with_suffix(".png")


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one line to a log. Raises CheckpointError if it cannot be written."""
    with written(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(row), allow_nan=False) + "\n")


def keep_lines(path: Path, last_step: int) -> None:
    """Before a resume: drop the log's lines behind the checkpoint, and a last line that a crash cut short."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
        write_whole(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))


def differences(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """Where two configurations differ: "steps: expected 100, got 200; ...". Empty if they agree."""
    expected, got = _plain(expected), _plain(got)
    names: Iterable[str] = dict.fromkeys([*expected, *got])
    return "; ".join(
        f"{name}: expected {expected.get(name)!r}, got {got.get(name)!r}"
        for name in names
        if expected.get(name) != got.get(name)
    )


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
