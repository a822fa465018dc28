"""The two-moons example: a short run from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import two_moons
from p4torch.runs.folder import read_json

pytest.importorskip("sbi")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    assert two_moons.main(["--short", "--seeds", "0", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert [row["method"] for row in rows] == list(two_moons.estimators())
    assert all(0.3 < value <= 1 for row in rows for value in row["c2st"])
    assert "| sbi's NSF |" in (out / "table.md").read_text()
