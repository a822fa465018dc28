"""The ReLoRA example: its text and model, its rows, a short run from end to end."""

from __future__ import annotations

from pathlib import Path

import torch
from examples.language_model import LanguageModel, Text
from examples.relora import Learner, warm_start
from examples.relora_variants import BLOCKS, SHORT, Setting, Variant, block_variant, memory_options, rounds, squares

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
    main = {variant for pairs in rounds(SHORT, [0]) for variant, _ in pairs}
    every = {*main, *memory_options(SHORT)}
    losses = [float(Learner(variant, SHORT, 0, text, warm).held_out().detach().mean()) for variant in every]
    assert max(losses) - min(losses) < 1e-5


def test_a_resume_is_exact(tmp_path: Path) -> None:
    text = Text()
    warm = warm_start(SHORT, 0, text)
    variant = Variant("relora", 1e-2, "transport", 2, "gradient")
    straight, resumed = (Learner(variant, SHORT, 0, text, warm) for _ in range(2))
    for _ in range(6):
        straight.advance()
    save_checkpoint(tmp_path / "state.pt", straight.state_dict())
    resumed.load_state_dict(load_checkpoint(tmp_path / "state.pt"))
    for fit in (straight, resumed):
        while fit.step < SHORT.steps:
            fit.advance()
    assert torch.equal(straight.held_out(), resumed.held_out())


def test_squares_of_a_rectangular_weight() -> None:
    for weight in (torch.randn(12, 4), torch.randn(4, 12)):
        view = squares(weight)
        assert view is not None and view.fit(weight).shape == (3, 4, 4)
    assert squares(torch.randn(4, 4)) is None


def test_blocks_train_at_most_two_fifths() -> None:
    text = Text()
    for shape in BLOCKS:
        learner = Learner(block_variant(*shape, Setting()), Setting(), 0, text, None)
        trainable = sum(value.numel() for value in learner.model.parameters() if value.requires_grad)
        assert trainable <= 0.4 * learner.size


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert relora.main(["--short", "--seeds", "0,1", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert [row["method"] for row in rows if row["seed"] == 1] == ["full", "lora", "relora", "relative"]
    assert {row["method"] for row in rows} == {"full", "lora", "relora", "relative", "poet"}
    assert all((row["merged"] == 0) == (row["method"] in ("full", "lora")) for row in rows)
    steps = {row["method"]: row["optimizer_bytes"] - 2 * 4 * row["trainable"] for row in rows}
    assert all(0 < extra < 1000 for extra in steps.values())  # Adam's step counters, one a parameter
    beside, inner = {row["method"]: row["beside_bytes"] for row in rows}, 4 * 16 * 16 + 2 * 16 * 64
    assert beside["full"] == 0 and beside["relative"] > 4 * inner and beside["poet"] > 8 * inner  # inverses, float64
    table = (out / "table.md").read_text()
    assert (out / "relora.png").exists() and "Merge intervals" in table and "| relative, blocks of 2, N = 5 |" in table


def test_a_short_run_of_the_options(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert relora.main(["--short", "--memory", "--seeds", "0", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert len(rows) == 11 and all(row["merged"] == 18 for row in rows)
    table = (out / "table.md").read_text()
    assert "| relora, reset, rewarm 2 |" in table and "Merge intervals" not in table
