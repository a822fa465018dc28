"""What a run of generators leaves: words, table, trajectories, violins, and samples on the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
import torch
from tests.molecules.systems import shaken, system_of
from typer.testing import CliRunner

from p4torch.cli import app
from p4torch.errors import ArgumentError
from p4torch.molecules import BoltzmannGenerator, Samples
from p4torch.molecules.analysis import energy_violin_figure
from p4torch.molecules.generator.diagnostics import energy_parity, findings, uncovered_share
from p4torch.molecules.generator.table import cells, markdown
from p4torch.molecules.generator.trajectories import write_trajectories

SYSTEM = system_of()
#: Energies of ours and of OpenMM, both in double precision, kJ/mol.
PARITY = 1e-6

ROW: dict[str, Any] = {
    "model": "spline-p4inv",
    "parameters": 448_621,
    "samples": 200_000,
    "ess_raw": 0.6,
    "ess_clipped": 0.62,
    "ess_at": {
        "100000": {"raw": 0.61, "clipped": 0.62, "largest_share": 1e-4},
        "200000": {"raw": 0.60, "clipped": 0.62, "largest_share": 1e-4},
    },
    "largest_weight_share": 1e-4,
    "delta_f_kT": 3.8,
    "delta_f_kT_error": 0.05,
    "md_delta_f_kT": 3.82,
    "md_delta_f_kT_error": 0.03,
    "mirror_share": 0.0,
    "inverse_residual": 1e-6,
    "energy_shift_kT": 0.5,
    "energy_shift_kT_error": 0.02,
}


def samples(count: int = 40) -> Samples:
    torch.manual_seed(0)
    frames = shaken(SYSTEM, count)
    energies = SYSTEM.energy(frames)
    log_weights = torch.randn(count, dtype=torch.float64)
    log_weights[0] = -math.inf
    return Samples(frames.float(), energies, torch.zeros(count, dtype=torch.float64), log_weights)


def verdicts(**changes: Any) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in findings({**ROW, **changes}, parity=1e-8, uncovered=0.0)}


def test_a_good_generator_is_called_good() -> None:
    assert set(verdicts().values()) == {"good"}


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"ess_raw": 0.001}, "Effective sample size", "poor"),
        ({"ess_raw": 0.02}, "Effective sample size", "fair"),
        ({"ess_at": {}}, "Effective sample size against N", "none"),
        (
            {"ess_at": {"100000": {"raw": 0.1}, "200000": {"raw": 0.05}}},
            "Effective sample size against N",
            "poor",
        ),
        ({"largest_weight_share": 0.5}, "Largest weight", "poor"),
        ({"delta_f_kT": 4.5}, "Free-energy difference", "poor"),
        ({"delta_f_kT": None}, "Free-energy difference", "poor"),
        ({"delta_f_kT_error": None}, "Free-energy difference", "poor"),
        ({"mirror_share": 0.001}, "Mirror forms", "fair"),
        ({"mirror_share": None}, "Mirror forms", "none"),
        ({"inverse_residual": 0.5}, "Inverse of the P4 layers", "poor"),
        ({"steps_left_out": 3}, "Left out in training", "fair"),
    ],
)
def test_a_fault_is_told(changes: dict[str, Any], name: str, verdict: str) -> None:
    assert verdicts(**changes)[name] == verdict


def test_parity_and_coverage() -> None:
    assert energy_parity(SYSTEM, samples()) < PARITY
    assert uncovered_share(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(0.5)


def test_the_table_has_a_column_for_each_row_and_no_empty_lines() -> None:
    held_out = {"model": "md-held-out", "delta_f_kT": 3.85, "delta_f_kT_error": None, "energy_shift_kT": None}
    header, lines = cells([ROW, held_out])
    assert header[:2] == ("model", "parameters") and "KL" not in header
    assert len(lines) == 2 and lines[1][0] == "md-held-out"
    text = markdown([ROW, held_out])
    assert "| ΔF weighted / kT | 3.80 ± 0.05 | 3.85 ± inf |" in text
    assert "| mean shift / kT | 0.50 ± 0.02 |  |" in text
    assert "60 at 200,000" in text


def test_mdtraj_opens_the_trajectories(tmp_path: Path) -> None:
    sampled = samples()
    write_trajectories(tmp_path, SYSTEM, sampled)
    weighted = mdtraj.load(str(tmp_path / "samples.dcd"), top=str(tmp_path / "topology.pdb"))
    assert np.allclose(weighted.xyz, sampled.frames.numpy(), atol=1e-6)  # DCD holds Å in single precision
    weights = np.load(tmp_path / "weights.npy")
    assert weights.sum() == pytest.approx(1.0) and weights[0] == 0.0
    equal = mdtraj.load(str(tmp_path / "resampled.dcd"), top=str(tmp_path / "topology.pdb"))
    assert equal.n_frames == len(sampled)
    never = np.abs(equal.xyz - weighted.xyz[0]).max(axis=(1, 2)).min()
    assert never > 1e-4, "a frame of weight zero was drawn"


def test_no_weight_above_zero_leaves_no_unweighted_trajectory(tmp_path: Path) -> None:
    sampled = samples(5)
    none = Samples(sampled.frames, sampled.energies, sampled.log_prob, torch.full((5,), -math.inf, dtype=torch.float64))
    write_trajectories(tmp_path, SYSTEM, none)
    assert (tmp_path / "samples.dcd").exists() and not (tmp_path / "resampled.dcd").exists()


def test_violins_say_how_many_energies_are_low() -> None:
    torch.manual_seed(0)
    energies = torch.randn(1000, dtype=torch.float64)
    far = torch.cat([energies[:500], torch.full((500,), math.inf, dtype=torch.float64)])
    figure = energy_violin_figure({"MD": (energies, None), "model": (far, None)}, threshold=4.0)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "1.000" in said and "0.500" in said
    with pytest.raises(ArgumentError, match="groups"):
        energy_violin_figure({}, threshold=4.0)


def test_sampling_on_the_command_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = BoltzmannGenerator.create(SYSTEM, shaken(SYSTEM, 200), model="spline")
    generator.save(tmp_path / "generator.safetensors")
    out = tmp_path / "drawn"
    done = CliRunner().invoke(
        app, ["molecule", "sample", str(tmp_path / "generator.safetensors"), "--count", "50", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "50 samples" in done.output
    assert {path.name for path in out.iterdir()} >= {"samples.dcd", "topology.pdb", "free-energy.png", "torsions.png"}
    refused = CliRunner().invoke(
        app, ["molecule", "sample", str(tmp_path / "generator.safetensors"), "--temperature", "310", "--out", str(out)]
    )
    assert refused.exit_code == 2 and "temperature" in refused.output and "310" in refused.output
