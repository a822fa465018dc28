"""The example of little dynamics: a short run from end to end, twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import little_md
from p4torch.runs.folder import read_json


@pytest.mark.slow
def test_a_short_run_leaves_a_table_and_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert little_md.main(["--short", "--out", str(tmp_path)]) == 0
    rows = read_json(tmp_path / "metrics.json")
    assert [row["from"] for row in rows] == ["dynamics", "likelihood", "forces"]
    assert rows[0]["nanoseconds"] == pytest.approx(0.032) and rows[0]["energies"] == 16_000
    assert rows[2]["energies"] == 16_000 + 4 * 256
    assert (tmp_path / "table.md").read_text("utf-8").count("\n") == 5
    before = (tmp_path / "0.01ns" / "rows.json").stat().st_mtime_ns
    assert little_md.main(["--short", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "0.01ns" / "rows.json").stat().st_mtime_ns == before
    assert "likelihood" in capsys.readouterr().out


def test_lengths_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert little_md.main(["--nanoseconds", "much", "--out", str(tmp_path)]) == 2
    assert "much" in capsys.readouterr().err
    assert little_md.main(["--nanoseconds", "-1", "--out", str(tmp_path)]) == 2
    assert "`nanoseconds` must be" in capsys.readouterr().err
