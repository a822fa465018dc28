"""Simulations as a whole: right, resumable, and refused early where they cannot work."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.molecules.simulation.butane import butane, share_of

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.molecules import (
    MolecularSystem,
    ParallelTempering,
    ReferenceData,
    TorsionFlattening,
    load_frames,
    simulate,
)
from p4torch.molecules.simulation.bias import TorsionBias
from p4torch.molecules.simulation.dynamics import Dynamics, SimulationError, Thermostat
from p4torch.molecules.simulation.ladder import Ladder, geometric
from p4torch.molecules.simulation.method import start_of
from p4torch.molecules.simulation.noise import NoiseRun, measure_noise
from p4torch.molecules.simulation.parts import Walker
from p4torch.molecules.simulation.store import Store
from p4torch.runs.pool import JobError

#: Standard errors that a right answer may be off by: one test in 16,000 fails for no reason.
SIGMAS = 4.0
#: A DCD file holds Å in single precision; nm.
DCD_ROUNDING = 1e-6

SMALL = TorsionFlattening(nanoseconds=2.0, walkers=3, adaptation_ns=0.3, rounds=6, equilibration_ns=0.02, save_ps=0.2)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished biased run of the four-atom chain."""
    out = tmp_path_factory.mktemp("runs") / "butane"
    simulate(butane(), SMALL, out, workers=2, console=quiet())
    return out


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reweighted_averages_are_exact(run: Path) -> None:
    system = butane()
    summary = json.loads((run / "summary.json").read_text())
    share = share_of(0.0, 2.4, system.kT)
    exact = math.log((1 - share) / share)
    for part in ("train", "held_out"):
        result = summary["parts"][part]
        assert abs(result["delta_f_kT"] - exact) < SIGMAS * result["error_kT"]
        assert result["error_kT"] < 0.3
        assert result["effective_share"] > 0.3
        assert result["crossings"] > 50


@pytest.mark.slow
def test_the_folder_holds_what_it_should(run: Path) -> None:
    system = butane()
    data, held_out = (ReferenceData.load(run, part, system) for part in ("train", "held_out"))
    assert len(data) == 2 * len(held_out) == 2 * SMALL.frames
    assert set(data.trajectory_ids.tolist()) == {0, 1} and set(held_out.trajectory_ids.tolist()) == {2}
    assert float(data.weights.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(data.energies, system.potential.energy(data.frames.double()), atol=1e-2, rtol=1e-4)
    frames = load_frames(run / "train" / "frames.dcd", system)
    torch.testing.assert_close(frames, data.frames, atol=DCD_ROUNDING, rtol=0)
    for name in ("topology.pdb", "system.xml", "provenance.json", "free-energy.pdf", "bias.json"):
        assert (run / name).stat().st_size > 0
    bias = json.loads((run / "bias.json").read_text())
    kept = TorsionBias(((0, 1, 2, 3),), torch.tensor(bias["kept"], dtype=torch.float64))
    weights = (kept.energy(kept.angles(data.frames)) / system.kT).exp()
    torch.testing.assert_close(data.weights, weights / weights.mean(), atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_tempering_has_each_temperatures_averages(tmp_path: Path) -> None:
    system = butane()
    method = ParallelTempering(replicas=3, ladders=2, nanoseconds=1.0, exchange_ps=0.5, equilibration_ns=0.02)
    simulate(system, method, tmp_path / "run", workers=2, console=quiet())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name, part in summary["parts"].items():
        share = share_of(0.0, 2.4, system.kT * part["temperature"] / system.temperature)
        assert name == f"{part['temperature']:g}K"
        assert abs(part["delta_f_kT"] - math.log((1 - share) / share)) < SIGMAS * part["error_kT"]
    share = share_of(0.0, 2.4, system.kT)
    mbar = summary["mbar"]
    assert abs(mbar["delta_f_kT"] - math.log((1 - share) / share)) < SIGMAS * mbar["error_kT"]
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert all(row["accepted"] > 0.2 and row["round_trips"] > 0 for row in provenance["rows"])


def test_temperatures_have_equal_ratios() -> None:
    assert geometric(300.0, 600.0, 3) == (300.0, 424.264, 600.0)
    with pytest.raises(ArgumentError, match="`highest` must be above the 700 K"):
        ParallelTempering().temperatures(butane(700.0))


# --- resumable --------------------------------------------------------------------------------------------------------


def _walker(folder: Path) -> Walker:
    system = butane()
    bias = TorsionBias(((0, 1, 2, 3),), 0.1 * torch.ones(1, 12, dtype=torch.float64))
    return Walker("walker", start_of(system, Thermostat(300.0)), bias, 5, 100, 1200, 4, folder)


def _ladder(folder: Path) -> Ladder:
    return Ladder("ladder", start_of(butane(), Thermostat(300.0)), (300.0, 400.0, 500.0), 5, 3, 250, 10, folder)


@pytest.mark.parametrize(("make", "replicas"), [(_walker, 1), (_ladder, 3)])
def test_a_stopped_part_goes_on_exactly(tmp_path: Path, make, replicas: int) -> None:
    whole = make(tmp_path / "whole").run(lambda progress: False)
    stops = iter([False, True])
    assert make(tmp_path / "cut").run(lambda progress: next(stops)) is None
    with (tmp_path / "cut" / "frames.raw").open("ab") as file:  # what a crash leaves behind a checkpoint
        file.write(b"\0" * 1000)
    row = make(tmp_path / "cut").run(lambda progress: False)
    assert {**row, "seconds": 0} == {**whole, "seconds": 0}
    for k in range(replicas):
        stores = [Store(tmp_path / name, 4, replicas) for name in ("whole", "cut")]
        np.testing.assert_array_equal(*(store.frames(k) for store in stores))
        np.testing.assert_array_equal(*(store.energies(k) for store in stores))


def test_lost_frames_are_noticed(tmp_path: Path) -> None:
    walker = _walker(tmp_path)
    stops = iter([True])
    walker.run(lambda progress: next(stops))
    (tmp_path / "energies.raw").write_bytes(b"")
    with pytest.raises(CheckpointError, match="must hold 500 records"):
        walker.run(lambda progress: False)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_too_small_a_disk_is_refused_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(ArgumentError, match=r"`out` must be on a disk with \d+ MB free, got 1 MB"):
        simulate(butane(), SMALL, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("")
    with pytest.raises(ArgumentError, match="`out` must be a new or empty folder"):
        simulate(butane(), SMALL, tmp_path / "run", console=quiet())


def test_less_than_one_worker_is_refused(tmp_path: Path) -> None:
    for start in (partial(simulate, butane(), SMALL), partial(measure_noise, butane(), NoiseRun())):
        with pytest.raises(ArgumentError, match="`workers` must be an integer >= 1, got 0"):
            start(tmp_path / "run", workers=0, console=quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"walkers": 0}, "`walkers` must be an integer >= 1"),
        ({"walkers": True}, "`walkers` must be an integer >= 1, got True"),
        ({"held_out": 0.5}, "`held_out` must be fewer than all 4 walkers"),
        ({"save_ps": "often"}, "`save_ps` must be a number > 0"),
        ({"held_out": 4}, "`held_out` must be fewer than all 4 walkers"),
        ({"nanoseconds": math.nan}, "`nanoseconds` must be a number > 0"),
        ({"equilibration_ns": -1.0}, "`equilibration_ns` must be a number >= 0"),
        ({"ess": 1.0}, "`ess` must be a share between 0 and 1"),
        ({"seed": -1}, "`seed` must be an integer from 0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TorsionFlattening(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        TorsionFlattening(nanoseconds=np.float32(0.5), ess=np.float32(0.5), walkers=np.int64(2), seed=np.int64(1)),
        TorsionFlattening(equilibration_ns=np.float32(0.5), held_out=np.int64(2), rounds=np.int64(3)),
        ParallelTempering(highest=np.float32(400.0), replicas=np.int64(2), ladders=np.int64(1), seed=np.int64(1)),
        NoiseRun((np.float32(300.0),), sigma_nm=np.float32(0.5), seed=np.int64(1)),
    ],
)
def test_settings_may_be_numbers_of_numpy(settings: object) -> None:
    flat = [part for value in vars(settings).values() for part in (value if isinstance(value, tuple) else (value,))]
    assert {type(value) for value in flat} <= {int, float, str}  # what JSON and OpenMM take


def test_a_simulation_that_explodes_says_so() -> None:
    start = start_of(butane(), Thermostat(300.0, step_fs=500.0))
    with pytest.raises(SimulationError, match=r"failed.*a time step below 500 fs may help"):
        Dynamics(start.system, start.positions, start.thermostat, seed=1).sampled(50, 20)


def test_an_exploding_walker_ends_the_run(tmp_path: Path) -> None:
    method = TorsionFlattening(nanoseconds=0.1, adaptation_ns=0.1, step_fs=500.0, torsions="0-1-2-3")
    with pytest.raises(JobError, match="bias 1: the simulation has failed"):
        simulate(butane(), method, tmp_path / "run", workers=1, console=quiet())


# --- data -------------------------------------------------------------------------------------------------------------


def test_resampling_takes_frames_as_often_as_their_weights_say() -> None:
    weights = torch.rand(50, dtype=torch.float64) ** 3
    frames = torch.arange(50.0).reshape(50, 1, 1).expand(50, 2, 3)
    data = ReferenceData(frames, weights / weights.mean(), torch.zeros(50), torch.zeros(50, dtype=torch.long), 300.0)
    generator = torch.Generator().manual_seed(1)
    counts = torch.bincount(data.resample(1000, generator)[:, 0, 0].long(), minlength=50)
    assert (counts - 1000 * weights / weights.sum()).abs().max() <= 1
    with pytest.raises(ArgumentError, match="`count` must be an integer >= 1"):
        data.resample(0)


def test_data_of_another_molecule_are_refused(tmp_path: Path) -> None:
    method = TorsionFlattening(
        nanoseconds=0.01, adaptation_ns=0.01, rounds=1, walkers=1, held_out=0, equilibration_ns=0.0
    )
    simulate(butane(), method, tmp_path / "run", workers=1, console=quiet())
    with pytest.raises(ArgumentError, match="`run` must be of MolecularSystem"):
        ReferenceData.load(tmp_path / "run", system=MolecularSystem.alanine_dipeptide())
    with pytest.raises(ArgumentError, match=r"held_out/frames\.dcd"):
        ReferenceData.load(tmp_path / "run", "held_out")
    with pytest.raises(ArgumentError, match="`path` must be a trajectory of 22 atoms"):
        load_frames(tmp_path / "run" / "train" / "frames.dcd", MolecularSystem.alanine_dipeptide())
    np.save(tmp_path / "run" / "train" / "weights.npy", np.ones(3))
    with pytest.raises(CheckpointError, match="as many weights as frames"):
        ReferenceData.load(tmp_path / "run")


def test_noise_costs_more_where_bonds_are_stiff(tmp_path: Path) -> None:
    run = NoiseRun((300.0,), sigma_nm=0.004, nanoseconds=0.02, equilibration_ns=0.001)
    (row,) = measure_noise(butane(), run, tmp_path / "noise", workers=1, console=quiet())
    # Each bond of k = 2e5 kJ/mol/nm² gains k σ² (two ends); angles and curvature add some.
    assert row["shift_kJ_mol"] == pytest.approx(3 * 2e5 * 0.004**2, rel=0.25)
    assert row["shift_kT"] == pytest.approx(row["shift_kJ_mol"] / butane().kT)
