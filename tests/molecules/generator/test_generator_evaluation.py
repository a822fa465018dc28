"""Figures of generators on a few frames, and data that no model should be trained on."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests.molecules.generator.small import frames, small
from tests.molecules.systems import system_of
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules import BoltzmannGenerator, ReferenceData, Samples
from p4torch.molecules.analysis.torsions import torsion_angles
from p4torch.molecules.generator.encoded import Encoded
from p4torch.molecules.generator.evaluation import evaluate, floors, held_out_mean, held_out_nll
from p4torch.molecules.generator.reference import Reference
from p4torch.training.measures import parameter_count

#: What tables and pages show of every model.
KEYS = {
    *("model", "parameters", "temperature_K", "energy_shift_kT", "energy_shift_kT_error", "low_energy_fraction"),
    *("nll", "nll_error", "ramachandran_tv", "ess_raw"),
    *("delta_f_kT", "delta_f_kT_error", "md_delta_f_kT", "md_delta_f_kT_error"),
}


def turned(x: Tensor, phi: Tensor) -> Tensor:
    """Frames whose φ are others."""
    coordinates = small("spline-p4inv").coordinates
    column = coordinates.layout.torsion_atoms.index(next(t for t in coordinates.layout.torsion_atoms if t[0] == 4))
    z = coordinates(x)[0]
    z[:, coordinates.layout.torsions[column]] = phi
    return coordinates.inverse(z)[0]


def data(phi: Tensor, seed: int, temperature: float = 300.0) -> ReferenceData:
    x = turned(frames(len(phi), seed=seed), phi)
    return ReferenceData(
        x.float(),
        torch.ones(len(x), dtype=torch.float64),
        system_of().potential.energy(x),
        torch.arange(len(x)) // (len(x) // 2),
        temperature,
    )


@cache
def reference() -> Reference:
    """Data with φ all round."""
    phi = torch.linspace(-3.1, 3.1, 200, dtype=torch.float64)
    return Reference(system_of(), data(phi, seed=1), data(phi[::2], seed=2))


@cache
def trained() -> BoltzmannGenerator:
    train = reference().train
    generator = small("spline-p4inv")
    generator.fit_likelihood(train.frames, train.weights, steps=200, batch=128, learning_rate=1e-2)
    return generator


def held_out(generator: BoltzmannGenerator) -> Encoded:
    return Encoded(generator.coordinates, reference().held_out.frames, reference().held_out.weights)


def row_of(generator: BoltzmannGenerator, samples: Samples) -> dict[str, Any]:
    frames = held_out(generator)
    return evaluate(generator, reference(), samples, frames, held_out_nll(generator, frames))


def test_differences_of_the_same_frames_have_small_errors() -> None:
    frames = held_out(trained())
    nll = held_out_nll(trained(), frames)
    noise = torch.randn(len(nll), generator=torch.Generator().manual_seed(0), dtype=nll.dtype)
    mean, difference = held_out_mean(reference(), nll), held_out_mean(reference(), 0.1 + 1e-3 * noise)
    assert mean.value == pytest.approx(float(frames.weights @ nll))
    assert difference.value == pytest.approx(0.1, abs=5 * difference.error)
    assert 0 < difference.error < mean.error / 10


def test_turning_phi_turns_phi_alone() -> None:
    result = torsion_angles(reference().train.frames, torch.tensor([reference().torsion]))[:, 0]
    assert float(result.min()) < -3.0 and float(result.max()) > 3.0
    assert (torch.histc(result, 6, -math.pi, math.pi) > 10).all()


def test_a_row_has_every_figure_and_all_are_finite() -> None:
    generator = trained()
    samples = generator.sample(2000, torch.Generator().manual_seed(0))
    samples = replace(samples, energies=samples.energies - samples.energies.min() + reference().level[0])  # some low
    row = row_of(generator, samples)
    assert not KEYS - row.keys()
    wrong = {name: value for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    assert not wrong and all(row[name] is not None for name in row)
    assert row["model"] == "spline-p4inv" and row["parameters"] == parameter_count(generator)
    assert row["temperature_K"] == 300.0 and row["samples"] == 2000
    with torch.no_grad():
        nll = -generator.log_prob(reference().held_out.frames).double().mean()
    assert row["nll"] == pytest.approx(float(nll), abs=1e-3) and row["nll_error"] > 0
    assert 0 < row["ramachandran_tv"] < 1 and 0 < row["ess_raw"] <= row["ess_clipped"] <= 1
    assert row["energy_shift_kJ_mol"] == pytest.approx(row["energy_shift_kT"] * system_of().kT)


def test_data_as_samples_have_no_shift() -> None:
    """Samples that are the data, with the densities that they should have."""
    every = reference().all
    u = every.energies / system_of().kT
    zeros = torch.zeros_like(u)
    row = row_of(trained(), Samples(every.frames, u, zeros, zeros))
    assert row["energy_shift_kT"] == pytest.approx(0.0, abs=1e-12)
    assert row["ramachandran_tv"] == pytest.approx(0.0, abs=1e-12)
    assert row["low_energy_fraction"] == 1.0 and row["ess_raw"] == pytest.approx(1.0)
    assert row["delta_f_kT"] == row["delta_f_raw_kT"] == pytest.approx(row["md_delta_f_kT"])
    assert row["unusable_share"] == row["mirror_share"] == 0.0


@pytest.mark.parametrize("usable", [0, 1, 2])
def test_samples_almost_without_weight_have_a_row_too(usable: int) -> None:
    samples = trained().sample(100, torch.Generator().manual_seed(0))
    chosen = torch.arange(100) < usable
    lost = replace(
        samples,
        energies=torch.full_like(samples.energies, math.inf),
        log_weights=torch.where(chosen, 0.0, -math.inf).double(),
    )
    row = row_of(trained(), lost)
    assert row["low_energy_fraction"] == 0.0 and row["energy_shift_kT"] is None
    assert row["energy_shift_kJ_mol"] is None
    assert row["unusable_share"] == pytest.approx(1 - usable / 100)
    assert row["ess_raw"] == pytest.approx(usable / 100) and 0 < row["largest_weight_share"] <= 1


def test_floors_of_held_out_and_noisy_data() -> None:
    split, noisy = floors(reference(), count=300)
    assert (split["model"], noisy["model"]) == ("md-held-out", "md-noise-0.004nm")
    assert 0 < split["ramachandran_tv"] < 1
    assert noisy["energy_shift_median_kT"] > split["energy_shift_median_kT"]


# --- data that no model should be trained on --------------------------------------------------------------------------


def test_data_with_all_modes_pass() -> None:
    reference().check()
    reference().check_temperature()


def test_a_missing_mode_is_refused_naming_the_torsion() -> None:
    """1 % of the held-out frames have φ > 0, and none for training."""
    negative = torch.linspace(-3.1, -0.5, 400, dtype=torch.float64)
    some = negative.clone()
    some[::100] = 1.0
    train, other = data(negative, seed=1), data(some, seed=2)
    Reference(system_of(), other, train).check()
    with pytest.raises(ArgumentError, match=r"`frames` must be for training.*1 % of those where torsion phi:2 has no"):
        Reference(system_of(), train, other).check()
    light = replace(other, weights=torch.where(torch.arange(400) % 100 == 0, 1e-3, 1.0).double())
    Reference(system_of(), train, light).check()  # its weight is what counts


def test_data_of_another_temperature_are_refused() -> None:
    warm = [replace(part, temperature=310.0) for part in (reference().train, reference().held_out)]
    with pytest.raises(ArgumentError, match="`data` must be of 300 K, got 310 K"):
        Reference(system_of(), *warm).check_temperature()
