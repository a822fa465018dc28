"""The Lipschitz example: a short run from end to end, and what its rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import lipschitz
from p4torch.runs.folder import read_json

pytest.importorskip("sklearn")


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert lipschitz.main(["--short", "--seeds", "0", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert [(row["task"], row["method"]) for row in rows] == [
        (task, method) for task in lipschitz.TASKS for method in lipschitz.METHODS
    ]
    for row in rows:
        if row["method"] == "p4.LipschitzNetwork":
            assert row["product"] <= row["certified"] <= lipschitz.BOUND
            assert row["largest_product"] <= lipschitz.BOUND
        assert 0 <= row.get("accuracy", 0) <= 1 and row.get("distance", 0) <= lipschitz.DISTANCE * row["product"] + 1e-3
    assert "torch spectral_norm" in (out / "table.md").read_text()
    assert lipschitz.main(["--short", "--seeds", "0", "--out", str(out), "--resume"]) == 0
    again = read_json(out / "metrics.json")["rows"]
    assert [row["product"] for row in again] == [row["product"] for row in rows]
