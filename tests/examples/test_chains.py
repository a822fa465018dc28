"""The example of chains against dynamics: its arithmetic, and a short run from end to end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from examples.chains import worth

from examples import chains
from p4torch.molecules import BoltzmannGenerator, MolecularSystem
from p4torch.molecules.analysis import free_energy_difference
from p4torch.molecules.generator.sampling import SHIPPED
from p4torch.molecules.simulation.data import PARTS, save_part
from p4torch.runs.folder import read_json, write_json

#: The bootstrap's error of an error: 200 resamples, and blocks of finite number.
BOOTSTRAP = 0.2


def test_independent_frames_are_worth_themselves() -> None:
    draw = torch.Generator().manual_seed(0)
    count, share = 40_000, 0.1
    inside = torch.rand(count, generator=draw, dtype=torch.float64) < share
    angles = torch.where(inside, 1.0, -1.0)
    assert math.isclose(worth(free_energy_difference(angles)), count, rel_tol=BOOTSTRAP)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder like a simulation's, of resampled frames."""
    system = MolecularSystem.alanine_dipeptide()
    samples = BoltzmannGenerator.load(SHIPPED, system).sample(3000, torch.Generator().manual_seed(0))
    folder = tmp_path / "data"
    folder.mkdir()
    for index, part in enumerate(PARTS):
        frames = samples.resample(1500, torch.Generator().manual_seed(index)).double()
        energies = system.energy(frames) * system.kT
        ones = torch.ones(len(frames), dtype=torch.float64)
        arrays = (ones.numpy(), energies.numpy(), torch.full((len(frames),), index).numpy())
        save_part(folder / part, 300.0, [frames.float().numpy()], *arrays)
    write_json(folder / "config.json", {"fingerprint": system.fingerprint})
    write_json(folder / "provenance.json", {"wall_seconds": 10.0, "workers": 2})
    return folder


def test_a_short_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert chains.main(["--data", str(data), "--out", str(out), "--short"]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert [row["name"].split(",")[0] for row in rows] == ["dynamics", "generator", "generator", "generator"]
    assert rows[0]["cpu_seconds"] == 20.0
    assert all(row["per_second"] > 0 for row in rows)
    assert 0 < rows[2]["acceptance"] < 1 and rows[3]["local_acceptance"] > 0.5
    assert "autocorrelation" in (out / "table.md").read_text()
    assert "independent frames" in capsys.readouterr().out


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chains.main(["--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "run" in capsys.readouterr().err
