"""How far a generator can be trusted, in words. A worse estimate never gets a better grade: nothing is graded in units
of its own error, and whatever rests on weights is at most as good as the weights are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from p4torch.molecules.analysis.free_energy import POSITIVE_PHI
from p4torch.molecules.analysis.torsions import arc_text
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.openmm_energy import OpenMMEnergy
from p4torch.molecules.report import Finding
from p4torch.molecules.report.contents import Verdict
from p4torch.molecules.system import MolecularSystem

Row = Mapping[str, Any]

#: Samples whose energies OpenMM computes, too.
COMPARED = 100
#: From the best on.
GRADES: tuple[Verdict, ...] = ("good", "fair", "poor")
#: The largest values that are good, and fair. Shares of the samples; of all weights; of the simulation's weight.
EFFECTIVE, LARGEST, UNCOVERED, MIRRORED = (0.1, 0.005), (0.01, 0.1), (0.002, 0.02), (1e-4, 1e-2)
#: The share by which the effective share may fall from 100,000 to 200,000 samples.
FALL = (0.1, 0.4)
#: Of free energies, kT: the difference and twice its error, together. "Chemical accuracy", 4.2 kJ/mol, is 1.7 kT.
FREE_ENERGY = (0.25, 0.75)
#: Relative, of energies; the largest entry of W W⁻¹ - 1; the share of steps and of energies that training left out.
PARITY, RESIDUAL, LEFT_OUT = (1e-5, 1e-3), (1e-4, 1e-2), (1e-3, 1e-2)


def findings(row: Row, parity: float, uncovered: float) -> tuple[Finding, ...]:
    """Of a row of `evaluate`.

    Args:
        row: the figures.
        parity: the largest relative difference of an energy from OpenMM's, see `energy_parity`.
        uncovered: the share of the data's weight in cells of the Ramachandran histogram without a sample.
    """
    return (
        _effective(row),
        _growth(row),
        Finding(
            "Largest weight",
            f"{100 * _known(row, 'largest_weight_share'):.2g} % of all",
            _grade(_known(row, "largest_weight_share"), LARGEST),
            "The part of every average that a single sample decides.",
        ),
        Finding(
            "Modes that are missing",
            f"{100 * uncovered:.2g} % of the simulation's weight",
            _grade(uncovered, UNCOVERED),
            "The share of the simulation that lies in cells of the torsion map where not one sample lies. Weights "
            "cannot bring back what is never drawn.",
        ),
        _difference(row),
        _wrong_chirality(row),
        Finding(
            "Force-field parity",
            f"{parity:.1e} of the energy",
            _grade(parity, PARITY),
            f"The largest relative difference between our energy and OpenMM's over {COMPARED} samples. Weights and "
            "free energies rest on these energies; up to 0.00001 nothing can be seen of it.",
        ),
        Finding(
            "Inverse of the P4 layers",
            f"{_known(row, 'inverse_residual'):.1e}",
            _grade(_known(row, "inverse_residual"), RESIDUAL),
            "The largest entry of W W⁻¹ - 1, with the inverses that were tracked through training. 0: no such layers.",
        ),
        _broken(row),
    )


def headline(found: Sequence[Finding]) -> Finding:
    """All of them in one line: as bad as the worst, which are named."""
    grade = worst(*(finding.verdict for finding in found))
    named = ", ".join(finding.name for finding in found if finding.verdict == grade)
    words = {
        "good": "Averages over the weighted samples can be trusted, within their errors.",
        "fair": f"To be used with care, and compared with the simulation: {named}.",
        "poor": f"No result should rest on these samples: {named}.",
        "none": "Nothing was measured.",
    }
    return Finding("Verdict", "", grade, words[grade])


def worst(*verdicts: Verdict) -> Verdict:
    """Of several; those that say nothing do not count."""
    return max((verdict for verdict in verdicts if verdict in GRADES), key=GRADES.index, default="none")


@torch.no_grad()
def energy_parity(system: MolecularSystem, samples: Samples) -> float:
    """max |U - V| / (|V| + kT), V OpenMM's energy, over a few samples of finite weight, both in float64.

    Relative: where atoms clash, energies are huge, and so is what rounding leaves of their difference.
    """
    usable = samples.log_weights.isfinite().nonzero().flatten()[:COMPARED]
    frames = samples.frames[usable].double()
    if len(frames) == 0:
        return float("nan")
    exact = OpenMMEnergy(system.openmm_system, workers=0).energy(frames)
    return float(((system.energy(frames) * system.kT - exact).abs() / (exact.abs() + system.kT)).max())


def uncovered_share(data: Tensor, samples: Tensor) -> float:
    """Σ p over bins in which the data have p, and the samples nothing; two histograms of the same bins."""
    return float(data[samples == 0].sum())


def _weights(row: Row) -> Verdict:
    """What rests on weights is no better than this: their effective share, and how much of them one sample has."""
    return worst(_at_least(_known(row, "ess_raw"), EFFECTIVE), _grade(_known(row, "largest_weight_share"), LARGEST))


def _effective(row: Row) -> Finding:
    share, count, grade = _known(row, "ess_raw"), row["samples"], _weights(row)
    number = f"{max(1, round(share * count)):,}" if math.isfinite(share) else "an unknown number of"
    words = {
        "good": f"After reweighting, the samples are worth as much as {number} independent ones of the Boltzmann "
        "distribution, as far as these samples can tell.",
        "fair": f"After reweighting, the samples seem to be worth as much as {number} independent ones. So low a share "
        "is itself an estimate from few samples: errors may be larger than they are told to be.",
    }
    poor = (
        "A few samples decide every average. Neither averages nor their errors can be trusted: the next sample may "
        "change all of them."
    )
    return Finding("Effective sample size", f"{100 * share:.2f} % of {count:,}", grade, words.get(grade, poor))


def _growth(row: Row) -> Finding:
    at = row["ess_at"]
    if len(at) < 2:
        return Finding("Effective sample size against N", "not measured", "none", "It takes 200,000 samples.")
    (first, small), (second, large) = sorted(at.items(), key=lambda item: int(item[0]))
    fall = 1 - large["raw"] / small["raw"] if small["raw"] else math.nan
    return Finding(
        "Effective sample size against N",
        f"{100 * small['raw']:.2f} % at {int(first):,}, {100 * large['raw']:.2f} % at {int(second):,}",
        worst(_grade(fall, FALL), _weights(row)),
        "A share that falls as samples are added says that rare samples of huge weight are still to come, and that the "
        "number above is too good. It should stay.",
    )


def _difference(row: Row) -> Finding:
    name = "Free-energy difference"
    ours, md = row["delta_f_kT"], row["md_delta_f_kT"]
    if ours is None or md is None:
        return Finding(name, "unknown", "poor", "Not both regions of the torsion were visited.")
    # JSON has no infinity: null stands for an error that too few visits leave unknown.
    errors = [
        math.inf if row[f"{key}_error"] is None else row[f"{key}_error"] for key in ("delta_f_kT", "md_delta_f_kT")
    ]
    bound = abs(ours - md) + 2 * math.hypot(*errors)
    return Finding(
        name,
        f"{ours:.2f} ± {errors[0]:.2f} kT, simulation {md:.2f} ± {errors[1]:.2f} kT",
        worst(_grade(bound, FREE_ENERGY), _weights(row)),
        f"Of the torsion from {arc_text(POSITIVE_PHI)} against the rest, from weighted samples. Good: the distance "
        f"from the simulation's and twice its error, together {bound:.2f} kT, are at most {FREE_ENERGY[0]} kT, and the "
        f"weights are good; fair: at most {FREE_ENERGY[1]} kT. An infinite error: a region was hardly visited.",
    )


def _wrong_chirality(row: Row) -> Finding:
    share = row["mirror_share"]
    if share is None:
        return Finding("Mirror forms", "none possible", "none", "The molecule has no chiral centre.")
    return Finding(
        "Mirror forms",
        f"{100 * share:.2g} %",
        _grade(share, MIRRORED),
        "Samples with a chiral centre turned round: D-forms of amino acids. The force field does not forbid them, the "
        "simulation never makes them.",
    )


def _broken(row: Row) -> Finding:
    steps, energies = row.get("steps_left_out", 0), row.get("energies_left_out", 0)
    made = sum(stage["steps"] for stage in row.get("protocol", {}).get("stages", ()))
    shares = ((steps, made), (energies, row.get("energy_evaluations")))
    return Finding(
        "Left out in training",
        f"{steps} steps, {energies} energies",
        worst(*(_left_out(count, total) for count, total in shares)),
        "Gradients and energies that were not finite: atoms on top of each other. They were skipped, nothing else.",
    )


def _left_out(count: int, total: int | None) -> Verdict:
    if not total:
        return "fair" if count else "good"
    return _grade(count / total, LEFT_OUT)


def _known(row: Row, name: str) -> float:
    """NaN for null, which stands for what is not finite."""
    return math.nan if row[name] is None else float(row[name])


def _at_least(value: float, bounds: tuple[float, float]) -> Verdict:
    return _grade(-value, (-bounds[0], -bounds[1]))


def _grade(value: float, bounds: tuple[float, float]) -> Verdict:
    """Up to the first bound good, up to the second fair; NaN is poor."""
    if value <= bounds[0]:
        return "good"
    return "fair" if value <= bounds[1] else "poor"
