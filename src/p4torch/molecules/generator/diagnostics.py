"""How far a generator can be trusted, in words."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.openmm_energy import OpenMMEnergy
from p4torch.molecules.report import Finding
from p4torch.molecules.report.contents import Verdict
from p4torch.molecules.system import MolecularSystem

#: Samples whose energies OpenMM computes, too.
COMPARED = 100


def findings(row: dict[str, Any], parity: float, uncovered: float) -> tuple[Finding, ...]:
    """Of a row of `evaluate`.

    Args:
        row: the figures.
        parity: the largest difference of an energy from OpenMM's, kJ/mol.
        uncovered: the share of the data's weight in cells of the Ramachandran histogram without a sample.
    """
    return (
        _effective(row),
        _growth(row),
        Finding(
            "Largest weight",
            f"{100 * row['largest_weight_share']:.2g} % of all",
            _grade(row["largest_weight_share"], 0.01, 0.1),
            "The part of every average that a single sample decides.",
        ),
        Finding(
            "Modes that are missing",
            f"{100 * uncovered:.2g} % of the simulation's weight",
            _grade(uncovered, 0.002, 0.02),
            "The share of the simulation that lies in cells of the torsion map where not one sample lies. Weights "
            "cannot bring back what is never drawn.",
        ),
        _difference(row),
        _wrong_chirality(row),
        Finding(
            "Force-field parity",
            f"{parity:.1e} kJ/mol",
            _grade(parity, 1e-3, 0.1),
            f"The largest difference between our energy and OpenMM's over {COMPARED} samples. Weights and free "
            "energies rest on these energies; up to 0.001 kJ/mol nothing can be seen of it.",
        ),
        Finding(
            "Inverse of the P4 layers",
            f"{row['inverse_residual']:.1e}",
            _grade(row["inverse_residual"], 1e-4, 1e-2),
            "The largest entry of W W⁻¹ - 1, with the inverses that were tracked through training. 0: no such layers.",
        ),
        _broken(row),
    )


@torch.no_grad()
def energy_parity(system: MolecularSystem, samples: Samples) -> float:
    """max |U - U of OpenMM| in kJ/mol over a few samples of finite weight, both in float64."""
    usable = samples.log_weights.isfinite().nonzero().flatten()[:COMPARED]
    frames = samples.frames[usable].double()
    if len(frames) == 0:
        return float("nan")
    exact = OpenMMEnergy(system.openmm_system, workers=0).energy(frames)
    return float((system.energy(frames) * system.kT - exact).abs().max())


def uncovered_share(data: Tensor, samples: Tensor) -> float:
    """Σ p over bins in which the data have p, and the samples nothing; two histograms of the same bins."""
    return float(data[samples == 0].sum())


def _effective(row: dict[str, Any]) -> Finding:
    share, count = row["ess_raw"], row["samples"]
    return Finding(
        "Effective sample size",
        f"{100 * share:.2f} % of {count:,}",
        _grade(-share, -0.1, -0.005),
        f"After reweighting, the samples are worth as much as {max(1, round(share * count)):,} independent ones of the "
        "Boltzmann distribution. Averages with weights are right for any share above zero; errors grow as it falls.",
    )


def _growth(row: dict[str, Any]) -> Finding:
    at = row["ess_at"]
    if len(at) < 2:
        return Finding("Effective sample size against N", "not measured", "none", "It takes 200,000 samples.")
    (first, small), (second, large) = sorted(at.items(), key=lambda item: int(item[0]))
    ratio = large["raw"] / small["raw"]
    return Finding(
        "Effective sample size against N",
        f"{100 * small['raw']:.2f} % at {int(first):,}, {100 * large['raw']:.2f} % at {int(second):,}",
        _grade(abs(ratio - 1), 0.1, 0.4),
        "A share that falls as samples are added says that rare samples of huge weight are still to come, and that the "
        "number above is too good. It should stay.",
    )


def _difference(row: dict[str, Any]) -> Finding:
    name = "Free-energy difference"
    ours, md = row["delta_f_kT"], row["md_delta_f_kT"]
    if ours is None or md is None:
        return Finding(name, "unknown", "poor", "Not both regions of the torsion were visited.")
    # JSON has no infinity: null stands for an error that too few visits leave unknown.
    errors = [
        math.inf if row[f"{key}_error"] is None else row[f"{key}_error"] for key in ("delta_f_kT", "md_delta_f_kT")
    ]
    known = math.isfinite(sum(errors))
    error = math.hypot(*errors)
    return Finding(
        name,
        f"{ours:.2f} ± {errors[0]:.2f} kT, simulation {md:.2f} ± {errors[1]:.2f} kT",
        _grade(abs(ours - md), 2 * error, 4 * error) if known else "poor",
        "Of the torsion between 0 and 2.4 rad against the rest, from weighted samples. Good: within two errors of the "
        "simulation's. An infinite error says that a region was hardly visited.",
    )


def _wrong_chirality(row: dict[str, Any]) -> Finding:
    share = row["mirror_share"]
    if share is None:
        return Finding("Mirror forms", "none possible", "none", "The molecule has no chiral centre.")
    return Finding(
        "Mirror forms",
        f"{100 * share:.2g} %",
        _grade(share, 1e-4, 1e-2),
        "Samples with a chiral centre turned round: D-forms of amino acids. The force field does not forbid them, the "
        "simulation never makes them.",
    )


def _broken(row: dict[str, Any]) -> Finding:
    left_out = row.get("steps_left_out", 0) + row.get("energies_left_out", 0)
    return Finding(
        "Left out in training",
        f"{row.get('steps_left_out', 0)} steps, {row.get('energies_left_out', 0)} energies",
        "good" if left_out == 0 else "fair",
        "Gradients and energies that were not finite: atoms on top of each other. They were skipped, nothing else.",
    )


def _grade(value: float, good: float, fair: float) -> Verdict:
    if value <= good:
        return "good"
    return "fair" if value <= fair else "poor"
