"""The example of certified classifiers: a short run from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import certified
from p4torch.runs.folder import read_json

pytest.importorskip("sklearn")


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert certified.main(["--short", "--seeds", "0", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert [row["method"] for row in rows] == list(certified.METHODS)
    for row in rows:
        assert row["constant"] <= 1 + 1e-5  # torch's are of norm 1 up to rounding in float32
        assert 0 <= row["certified"] <= row["accuracy"] <= 1
    assert certified.main(["--short", "--seeds", "0", "--out", str(out), "--resume"]) == 0
    again = read_json(out / "metrics.json")["rows"]
    assert [row["certified"] for row in again] == [row["certified"] for row in rows]
