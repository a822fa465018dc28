"""The ReLoRA example: its text and model, its rows, a short run from end to end."""

from __future__ import annotations

from pathlib import Path

import torch
from examples.language_model import LanguageModel, Text
from examples.relora import SHORT, Learner, Variant, variants, warm_start

from examples import relora
from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint
from p4torch.runs.folder import read_json


def test_windows_are_of_their_part() -> None:
    text = Text()
    assert len(text.held_out) > 10_000 and len(text.train) > 8 * len(text.held_out)
    batch = text.batch(5, 16, torch.Generator().manual_seed(0))
    assert batch.shape == (5, 17) and batch.max() < 256
    windows = text.windows(4, 16)
    assert torch.equal(windows[0], text.held_out[:17]) and torch.equal(windows[-1], text.held_out[-17:])


def test_the_model_sees_the_past_only() -> None:
    model, x = LanguageModel(16, 2, 2, 8), torch.randint(256, (3, 8))
    other = x.clone()
    other[:, 5:] = torch.randint(256, (3, 3))
    torch.testing.assert_close(model(x)[:, :5], model(other)[:, :5], rtol=0, atol=1e-5)  # float32 sums


def test_all_start_from_the_same_network() -> None:
    text = Text()
    warm = warm_start(SHORT, 0, text)
    losses = {float(Learner(variant, SHORT, 0, text, warm).held_out().detach().mean()) for variant in variants(SHORT)}
    assert max(losses) - min(losses) < 1e-5


def test_a_resume_is_exact(tmp_path: Path) -> None:
    text = Text()
    warm = warm_start(SHORT, 0, text)
    variant = Variant("relora", 1e-2, "transport", 2, "informed")
    straight, resumed = (Learner(variant, SHORT, 0, text, warm) for _ in range(2))
    for _ in range(6):
        straight.advance()
    save_checkpoint(tmp_path / "state.pt", straight.state_dict())
    resumed.load_state_dict(load_checkpoint(tmp_path / "state.pt"))
    for fit in (straight, resumed):
        while fit.step < SHORT.steps:
            fit.advance()
    assert torch.equal(straight.held_out(), resumed.held_out())


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert relora.main(["--short", "--seeds", "0", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert len(rows) == 17 and {row["method"] for row in rows} == {"full", "lora", "relora", "poet", "relative"}
    assert all(row["merged"] == (0 if row["method"] in ("full", "lora") else 18) for row in rows)
    assert all(row["adam"] == 2 * row["trainable"] for row in rows)
    assert (out / "relora.png").exists() and "| relora, reset, rewarm 2 |" in (out / "table.md").read_text()
