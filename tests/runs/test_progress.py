"""How running jobs are shown."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import pytest
from rich.console import Console

from p4torch.runs.progress import display, duration


@dataclass(frozen=True)
class _Job:
    title: str = "rings, seed 0"
    steps: int = 100


@dataclass(frozen=True)
class _Progress:
    step: int
    note: str


@pytest.mark.parametrize("terminal", [True, False])
def test_displays_tell_how_jobs_are_doing(terminal: bool) -> None:
    job, console = _Job(), Console(file=io.StringIO(), force_terminal=terminal, width=150, color_system=None)
    with display([job], console, lambda job, row: f"{job.title}: KL {row['kl']}") as shown:
        shown.started(job)
        shown.progressed(job, _Progress(50, "loss 3.25"))
        shown.finished(job, {"kl": 0.5})
        shown.message("Stopping")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "rings, seed 0: KL 0.5" in text and "Stopping" in text
    assert ("all, steps" in text) == terminal


def test_lines_say_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("p4torch.runs.progress.time.monotonic", lambda: now)
    job, console = _Job(steps=1000), Console(file=io.StringIO(), force_terminal=False, width=150)
    with display([job], console, lambda job, row: "") as shown:
        shown.started(job)
        for step in (100, 200, 300):
            now += 20.0
            shown.progressed(job, _Progress(step, "loss 1"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "step 200/1000, loss 1, 3 min left" in text and "step 300/1000, loss 1, 2 min left" in text


def test_bars_are_whole_on_a_narrow_terminal() -> None:
    job = _Job(title="P4Inv, whole matrices, seed 12", steps=10_240_000)
    console = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    with display([job], console, lambda job, row: "") as shown:
        shown.started(job)
        shown.progressed(job, _Progress(5_120_000, "shift 0.25 kT, ESS 44.02%, NLL 57.233"))
        shown._bars.refresh()  # type: ignore[union-attr]
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n")  # type: ignore[attr-defined]
    lines = frames.splitlines()
    assert max(map(len, lines)) <= 60 and "…" not in frames
    assert any(job.title in line and "50%" in line and ":" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (90, "2 min"), (7000, "117 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
