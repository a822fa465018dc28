"""What a run of generators leaves: words, table, trajectories, violins, and samples on the command line."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests.molecules.systems import shaken, system_of
from typer.testing import CliRunner

from p4torch.cli import app
from p4torch.errors import ArgumentError
from p4torch.molecules import BoltzmannGenerator, Samples
from p4torch.molecules.analysis import energy_violin_figure, ramachandran_histogram, summarize_weights
from p4torch.molecules.conditions import solvent
from p4torch.molecules.generator import figures
from p4torch.molecules.generator.diagnostics import GRADES, energy_parity, findings, headline, uncovered_share
from p4torch.molecules.generator.sampling import SHIPPED
from p4torch.molecules.generator.summary import EXPLAINED
from p4torch.molecules.generator.table import cells, markdown
from p4torch.molecules.generator.trajectories import write_trajectories
from p4torch.molecules.report import Finding

SYSTEM = system_of()
#: Energies of ours and of OpenMM, both in double precision, kJ/mol.
PARITY = 1e-6
EFFECTIVE, DIFFERENCE = "Effective sample size", "Free-energy difference"

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


#: What a run of a poor generator told of itself, one fault at a time.
UNTRUSTWORTHY = [
    ({"delta_f_kT": 168.0, "delta_f_kT_error": 47.0, "md_delta_f_kT": 7.2, "md_delta_f_kT_error": 0.7}, DIFFERENCE),
    ({"delta_f_kT": -153.0, "delta_f_kT_error": 160.0}, DIFFERENCE),
    ({"largest_weight_share": 1.0, "samples": 100, "ess_raw": 0.01}, EFFECTIVE),
    ({"largest_weight_share": 0.21, "ess_raw": 0.0005}, EFFECTIVE),
    ({"largest_weight_share": 0.21, "ess_raw": 0.0005}, DIFFERENCE),
    ({"largest_weight_share": 1.0}, "Largest weight"),
    ({"ess_raw": None}, EFFECTIVE),
    ({"largest_weight_share": None}, DIFFERENCE),
]


@pytest.mark.parametrize(("changes", "name"), UNTRUSTWORTHY)
def test_what_cannot_be_trusted_is_poor(changes: dict[str, Any], name: str) -> None:
    assert verdicts(**changes)[name] == "poor"
    assert headline(findings({**ROW, **changes}, 1e-8, 0.0)).verdict == "poor"


def test_nothing_good_is_said_of_weights_that_a_few_samples_have() -> None:
    row = {**ROW, "ess_raw": 0.0005, "largest_weight_share": 0.21}
    words = next(finding.words for finding in findings(row, 1e-8, 0.0) if finding.name == EFFECTIVE)
    assert "can be trusted" in words and "Neither" in words and "right" not in words


#: A row with one or another fault, and by how much worse another one is; errors and shares alike.
AMOUNT = st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 1e3))
SHARE = st.floats(0, 1)


@given(
    st.fixed_dictionaries(
        {
            "distance": AMOUNT,
            "error": AMOUNT,
            "md_error": AMOUNT,
            "ess": SHARE,
            "fall": SHARE,
            "largest": SHARE,
            "mirror": SHARE,
            "residual": AMOUNT,
            "parity": AMOUNT,
            "uncovered": SHARE,
            "left_out": st.integers(0, 100),
        }
    ),
    st.dictionaries(st.sampled_from(["distance", "error", "md_error", "residual", "parity", "left_out"]), AMOUNT),
    st.dictionaries(st.sampled_from(["ess", "fall", "largest", "mirror", "uncovered"]), SHARE),
    st.sampled_from([-1, 1]),
)
@settings(max_examples=300)
def test_a_worse_estimate_never_gets_a_better_grade(
    faults: dict[str, float], more: dict[str, float], shares: dict[str, float], side: int
) -> None:
    worse = faults | {name: faults[name] + amount for name, amount in more.items()}
    worse |= {name: (min if name == "ess" else max)(faults[name], share) for name, share in shares.items()}
    before, after = (graded(values, side) for values in (faults, worse))
    for one, other in zip(before, after, strict=True):
        assert one.name == other.name
        assert GRADES.index(one.verdict) <= GRADES.index(other.verdict), one.name
    assert GRADES.index(headline(before).verdict) <= GRADES.index(headline(after).verdict)


def graded(faults: dict[str, float], side: int) -> tuple[Finding, ...]:
    """Findings of a generator with these faults; its ΔF is too large, or too small."""
    small = 0.9
    row = {
        "ess_raw": faults["ess"],
        "ess_at": {"100000": {"raw": small}, "200000": {"raw": small * (1 - faults["fall"])}},
        "largest_weight_share": faults["largest"],
        "delta_f_kT": ROW["md_delta_f_kT"] + side * faults["distance"],
        "delta_f_kT_error": faults["error"],
        "md_delta_f_kT_error": faults["md_error"],
        "mirror_share": faults["mirror"],
        "inverse_residual": faults["residual"],
        "steps_left_out": faults["left_out"],
        "protocol": {"stages": [{"steps": 1000}]},
    }
    return findings({**ROW, **row}, faults["parity"], faults["uncovered"])


def test_the_headline_names_the_worst() -> None:
    assert headline(findings(ROW, 1e-8, 0.0)).verdict == "good"
    fair = headline(findings({**ROW, "mirror_share": 0.001}, 1e-8, 0.0))
    assert fair.verdict == "fair" and "Mirror forms" in fair.words and "Largest" not in fair.words
    poor = headline(findings({**ROW, "mirror_share": 0.001, "inverse_residual": math.nan}, 1e-8, 0.0))
    assert poor.verdict == "poor" and "Inverse of the P4 layers" in poor.words and "Mirror" not in poor.words


def test_parity_is_relative_to_the_energy() -> None:
    """Atoms that clash have huge energies, whose rounding is no fault of the force field; a wrong force field is."""
    sampled = samples()
    frames = sampled.frames.clone()
    frames[:, 0] = frames[:, 21] + 0.02 * (frames[:, 0] - frames[:, 21])  # no bond is between them
    clashing = Samples(frames, SYSTEM.energy(frames.double()), sampled.log_prob, sampled.log_weights.clamp(min=-9.0))
    assert float(clashing.energies.abs().max()) > 1e6
    assert verdict_of_parity(energy_parity(SYSTEM, clashing)) == "good"
    wrong = copy.copy(SYSTEM)
    vars(wrong)["potential"] = Scaled()
    assert verdict_of_parity(energy_parity(wrong, sampled)) == "poor"


class Scaled:
    """Energies that are one per cent too large."""

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return 1.01 * SYSTEM.potential.energy(x)


def verdict_of_parity(parity: float) -> str:
    return next(finding.verdict for finding in findings(ROW, parity, 0.0) if finding.name == "Force-field parity")


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


def log_lines(nll: float) -> list[dict[str, Any]]:
    return [{"seconds": 60.0 * k, "nll": nll - k, "ess": 0.1 * k, "energy_evaluations": 1000 * k} for k in range(3)]


def test_likelihoods_of_other_coordinates_have_an_axis_of_their_own() -> None:
    logs = {"RNVP": log_lines(80.0), "P4Inv": log_lines(81.0), "spline": log_lines(56.0)}
    figure = figures.training(logs, {"RNVP": "standard", "P4Inv": "standard", "spline": "circle"})
    drawn = {axis.get_title(): len(axis.lines) for axis in figure.axes if "−log q" in axis.get_ylabel()}
    assert drawn == {"torsions: standard": 2, "torsions: circle": 1}
    alone = figures.training({"RNVP": logs["RNVP"]}, {"RNVP": "standard"})
    assert [len(axis.lines) for axis in alone.axes] == [1, 1, 1]


def test_the_torsion_map_is_of_the_model_that_is_told_of() -> None:
    histogram = ramachandran_histogram(torch.randn(500).clamp(-3, 3), torch.randn(500).clamp(-3, 3))
    reference = SimpleNamespace(ramachandran=histogram, histogram=lambda frames, weights=None: histogram)
    figure = figures.ramachandran(reference, "spline", samples())  # type: ignore[arg-type]
    assert [axis.get_title() for axis in figure.axes][:3] == ["MD", "spline", "spline, weighted"]


def test_a_forward_share_of_nothing_is_no_number_of_a_hundred_digits() -> None:
    header, lines = cells([{"model": "rnvp", "ess_forward": 4.7e-100}, {"model": "spline", "ess_forward": 0.82}])
    assert [line[header.index("forward ESS / %")] for line in lines] == ["< 0.01", "82"]
    assert "Forward ESS" in EXPLAINED


def test_the_solvent_is_named() -> None:
    assert solvent(SYSTEM.openmm_system) == "implicit, generalised Born (GBSAOBCForce)"
    assert solvent(openmm.System()) == "none: vacuum"


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


#: Bytes of the generator in the package: wheels stay small.
SMALL = 6_000_000
#: The effective sample size of the generator in the package was 88 % of 200,000; one of 2,000 has less of the tails.
SHIPPED_SHARE = 0.8


@pytest.mark.slow
def test_the_generator_in_the_package_is_small_and_good() -> None:
    assert SHIPPED.stat().st_size < SMALL
    samples = BoltzmannGenerator.load(SHIPPED, SYSTEM).sample(2000, torch.Generator().manual_seed(0))
    assert summarize_weights(samples.log_weights).raw > SHIPPED_SHARE


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
