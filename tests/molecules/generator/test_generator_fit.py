"""`p4torch molecule fit` as users run it: a check of seconds on a simulation of seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import mdtraj
import pytest
from tests.molecules.small_molecules import small_files
from tests.molecules.systems import pdb_of
from tests.molecules.test_report_page import AXE, CHROMIUM, HEAVIEST, accessibility_violations
from typer.testing import CliRunner

from p4torch.cli import app
from p4torch.molecules import BoltzmannGenerator, MolecularSystem
from p4torch.molecules.generator import command
from p4torch.molecules.generator.estimate import estimate_seconds
from p4torch.molecules.generator.presets import PRESETS, schedule

STEPS = ["--likelihood-steps", "20", "--force-steps", "0", "--energy-steps", "2"]
CHECK = ["fit", "--preset", "check", "--workers", "1", "--samples", "500"]


def call(*arguments: str):
    return CliRunner(env={"TERMINAL_WIDTH": "200", "NO_COLOR": "1"}).invoke(app, ["molecule", *arguments])


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with a simulation of its own, and what it said."""
    out = tmp_path_factory.mktemp("fit") / "run"
    result = call(*CHECK, *STEPS, "--models", "spline", "--out", str(out))
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.mark.slow
def test_a_run_says_what_it_will_cost_and_leaves_a_model(run: tuple[Path, str]) -> None:
    out, said = run
    assert re.search(r"spline: 1,419,816 parameters, 2,048 energy evaluations, about .+ on one core", said)
    assert re.search(r"All: about .+ with 1 at a time, after the simulation", said)
    assert said.splitlines()[-1] == f"Report: {out / 'report.html'}" and (out / "report.html").exists()
    assert "dcdplugin" not in said
    folder = out / "models" / "spline"
    row = json.loads((folder / "result.json").read_text())
    assert row["model"] == "spline" and row["samples"] == 500 and row["protocol"]["merge_every"] == 20
    assert row["parameters"] == 1_419_816 and row["nll"] is not None and row["temperature_K"] == 300.0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == [0, 1]
    generator = BoltzmannGenerator.load(folder / "generator.safetensors", MolecularSystem.alanine_dipeptide())
    assert len(generator.sample(10)) == 10


@pytest.mark.slow
def test_an_own_molecule_with_a_ring_leaves_frames_figures_and_a_page(tmp_path: Path) -> None:
    out = tmp_path / "proline"
    result = call(*CHECK, *STEPS, "--models", "p4inv-rank2", "--out", str(out), str(pdb_of("proline-dipeptide")))
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} >= {
        *("metrics.json", "md.json", "table.md", "report.html", "energies.pdf", "ramachandran.png", "training.png"),
        *("data", "models", "samples"),
    }
    row, held_out = json.loads((out / "metrics.json").read_text())[0], json.loads((out / "md.json").read_text())[0]
    assert row["model"] == "p4inv-rank2" and row["mirror_share"] is not None and held_out["model"] == "md-held-out"
    samples = mdtraj.load(str(out / "samples" / "samples.dcd"), top=str(out / "samples" / "topology.pdb"))
    assert samples.n_frames == 500 and samples.n_atoms == 26
    page = (out / "report.html").read_text("utf-8")
    assert "ACE-PRO-NME" in page and "Effective sample size" in page and "://" not in page
    for said in ("amber99sbildn.xml, amber96_obc.xml", "generalised Born", "300 K", "p4torch 0.", "Command", "Started"):
        assert said in page.partition("Findings")[0]
    assert 'class="headline poor"' in page, "no check is a generator"
    assert (out / "report.html").stat().st_size < HEAVIEST
    if AXE is not None and CHROMIUM is not None:
        assert accessibility_violations(out / "report.html") == []


@pytest.mark.slow
def test_resuming_a_finished_run_trains_nothing_anew(run: tuple[Path, str]) -> None:
    out, _ = run
    made = [path for path in out.glob("models/*/*") if path.is_file()]
    before = [path.stat().st_mtime_ns for path in made]
    result = call(*CHECK, *STEPS, "--models", "spline", "--out", str(out), "--resume")
    assert result.exit_code == 0, result.output
    assert [path.stat().st_mtime_ns for path in made] == before


@pytest.mark.slow
def test_stages_may_be_added_to_a_finished_run_but_not_taken_away(run: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    options = ["--models", "spline", "--out", str(out), "--resume"]
    result = call(*CHECK, *STEPS, "--force-steps", "3", *options)
    assert result.exit_code != 0 and "got one with stages" in result.output  # forces come before energies
    start = ["--likelihood-steps", "20", "--force-steps", "0"]
    first = tmp_path / "first"
    data = ["--data", str(run[0] / "data"), "--models", "spline", "--out", str(first)]
    assert call(*CHECK, *start, *data).exit_code == 0
    before = [json.loads(line) for line in (first / "models" / "spline" / "metrics.jsonl").read_text().splitlines()]
    result = call(*CHECK, "--likelihood-steps", "20", "--force-steps", "3", *data, "--resume")
    assert result.exit_code == 0, result.output
    after = [json.loads(line) for line in (first / "models" / "spline" / "metrics.jsonl").read_text().splitlines()]
    assert after[: len(before)] == before and after[-1]["stage"] == 1
    row = json.loads((first / "metrics.json").read_text())[0]
    assert row["energy_evaluations"] == 3 * 256 and len(row["protocol"]["stages"]) == 2
    result = call(*CHECK, *start, *data, "--resume")
    assert result.exit_code != 0 and "must be of the schedule that is asked for" in result.output


@pytest.mark.slow
def test_models_that_come_later_are_compared_on_the_same_frames(run: tuple[Path, str], tmp_path: Path) -> None:
    data = ["--data", str(run[0] / "data"), "--out", str(tmp_path / "run"), "--models", "spline", *STEPS]
    assert call(*CHECK, *data).exit_code == 0
    result = call(*CHECK, *data, "--seeds", "0,1", "--resume")
    assert result.exit_code == 0, result.output
    first, second = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "nll_difference" not in first and second["seed"] == 1
    assert second["nll_difference"] == pytest.approx(second["nll"] - first["nll"], abs=1e-9)
    assert second["nll_difference_error"] >= 0
    assert "less the first model's" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--resume goes on"),
        (["--resume", "--merge-every", "9"], "must be of the schedule that is asked for, got one with merge_every"),
        (["--resume", "--temperature", "310"], "temperature: expected 300.0, got 310.0"),
    ],
)
def test_another_run_in_its_folder_is_refused(run: tuple[Path, str], options: list[str], message: str) -> None:
    result = call(*CHECK, *STEPS, "--models", "spline", "--out", str(run[0]), *options)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "310"], "`data` must be of 310 K, got 300 K"),
        ([str(pdb_of("cysteine-dipeptide"))], "`run` must be of MolecularSystem"),
    ],
)
def test_foreign_data_are_refused(run: tuple[Path, str], tmp_path: Path, options: list[str], message: str) -> None:
    result = call(
        *CHECK, *options, "--models", "spline", "--data", str(run[0] / "data"), "--out", str(tmp_path / "run")
    )
    assert result.exit_code == 2 and f"Error: {message}" in result.output


@pytest.mark.slow
def test_data_that_miss_a_mode_are_refused_but_by_a_check(run: tuple[Path, str], tmp_path: Path) -> None:
    """The simulation of a check is much too short."""
    options = ["--models", "spline", "--data", str(run[0] / "data"), "--out", str(tmp_path / "run"), "--workers", "1"]
    result = call("fit", "--preset", "quick", *STEPS, *options)
    assert result.exit_code == 2 and "Error: `frames` must be for training that cover all modes" in result.output
    assert "Good for a check only: `frames` must be for training that cover all modes" in run[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--models", "glow"],
            "`model` must be rnvp, p4inv, p4inv-rank<k>, p4inv-whole, spline or spline-p4inv, got 'glow'",
        ),
        (["--models", ""], "`models` must be one or more models"),
        (["--models", "rnvp,rnvp"], "`models` must be different"),
        (["--seeds", "1,1"], "`models` must be different"),
        (["--seeds", "one"], "`seeds` must be integers"),
        (["--preset", "huge"], "`preset` must be paper or quick or check, got 'huge'"),
        (["--data", "nowhere"], "`data` must be the folder of a finished simulation"),
        (["--merge-every", "0"], "`merge_every` must be an integer >= 1, got 0"),
        (["--perturbation-rate", "0"], "`perturbation_rate` must be positive and finite"),
        (["--likelihood-steps", "-1"], "`likelihood_steps` must be an integer >= 0, got -1"),
        (["--force-steps", "-2"], "`force_steps` must be an integer >= 0, got -2"),
        (["--energy-steps", "-5"], "`energy_steps` must be an integer >= 0, got -5"),
        (
            ["--likelihood-steps", "0", "--force-steps", "0", "--energy-steps", "0"],
            "`likelihood_steps` must be >= 1 where force_steps = energy_steps = 0",
        ),
        (["--samples", "-1"], "`samples` must be an integer >= 1, got -1"),
        (["--samples", "0"], "`samples` must be an integer >= 1, got 0"),
        (["--workers", "0"], "`workers` must be an integer >= 1"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(tmp_path: Path, options: list[str], message: str) -> None:
    result = call(*CHECK, *options, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert f"Error: {message}" in result.output and "Traceback" not in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("Error")]) == 1
    assert os.listdir(tmp_path) == []


def test_a_folder_with_brackets_is_named_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "train_generators", lambda *request, **options: None)
    out = tmp_path / "[bold]run"
    assert str(out) in call("fit", "--preset", "check", "--out", str(out)).output


def test_help_has_an_example() -> None:
    assert "p4torch molecule fit" in call("fit", "--help").output


# --- schedules by name, and how long they take ------------------------------------------------------------------------


def test_protocols_by_name() -> None:
    paper = schedule("p4inv", "paper", seed=4)
    assert [(phase.steps, phase.frames, phase.samples) for phase in paper.phases] == [
        (40_000, 256, 0),
        (2000, 256, 4000),
    ]
    assert paper.seed == 4 and paper.evaluations == 8_000_000
    assert [(phase.steps, phase.forces) for phase in schedule("spline", "paper").phases] == [
        (24_000, False),
        (6_000, True),
    ]
    assert schedule("spline", "paper", energy_steps=5).phases[2].samples == 1024
    assert schedule("spline", "paper").evaluations == 6_000 * 256
    lengths = [schedule("rnvp", preset).points for preset in PRESETS]
    assert lengths == sorted(lengths, reverse=True)
    assert [phase.steps for phase in schedule("rnvp", "check", likelihood_steps=7).phases] == [7, 2]
    assert [phase.samples for phase in schedule("rnvp", "check", likelihood_steps=0).phases] == [4000]
    assert [phase.samples for phase in schedule("rnvp", "check", energy_steps=0).phases] == [0]


def test_an_estimate_grows_with_the_steps_and_leaves_threads_as_they_were() -> None:
    system = MolecularSystem.alanine_dipeptide()
    short, long = (schedule("spline", "check", likelihood_steps=steps, force_steps=0) for steps in (10, 10_000))
    seconds = [estimate_seconds(system, "spline", one) for one in (short, long)]
    assert 0 < 10 * seconds[0] < seconds[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["butane", "glycine"])
def test_a_molecule_without_a_chiral_centre_is_fitted_to_the_end(name: str, tmp_path: Path) -> None:
    pdb, xml = small_files(name, tmp_path)
    out = tmp_path / "run"
    result = call(*CHECK, *STEPS, "--models", "spline", "--out", str(out), str(pdb), "--system-xml", str(xml))
    assert result.exit_code == 0, result.output
    assert "The molecule has no chiral centre." in (out / "report.html").read_text("utf-8")
