"""The page about molecules runs as it stands, on a short simulation."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from p4torch.molecules import Biased, MolecularSystem, simulate

PAGE = Path(__file__).parents[2] / "docs" / "molecules.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    method = Biased(nanoseconds=0.2, adaptation_ns=0.3, equilibration_ns=0.01, walkers=2)
    simulate(
        MolecularSystem.alanine_dipeptide(), method, "runs/molecule", workers=1, console=Console(file=io.StringIO())
    )
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["x"].shape == (2000, 22, 3) and names["training_frames"].shape == (1000, 22, 3)
    assert -80 < float(names["mean_energy"]) < -40
    assert names["difference"].value > 0
