"""The density experiment: models, data, one job and its exact resume, measures, results."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.density import figure
from experiments.density.config import Config, Job
from experiments.density.data import CHUNK, TrainingChunks, held_out
from experiments.density.job import run_job
from experiments.density.models import BUILDERS, MODELS, build
from experiments.density.rates import best_rates, one_rate, tuned_rates
from experiments.density.run import clear_demo
from experiments.density.settings import FULL, SHORT, resolve
from experiments.density.table import markdown, summarise
from experiments.targets import TARGETS, get_target
from safetensors.torch import load_file
from tests.flows.bijections import randomized

from experiments import figures, metrics
from p4torch.errors import ArgumentError, CheckpointError
from p4torch.runs.folder import prepare, write_figure
from p4torch.training import measures

JOB = Job("eight-gaussians", "p4inv", seed=0, steps=150, batch=32, every=20, learning_rate=1e-2)


# --- models and data ------------------------------------------------------------------------------------------------


def test_both_models_have_as_many_parameters() -> None:
    p4inv, whole, rnvp = (measures.parameter_count(build(name)) for name in ("p4inv", "whole", "rnvp"))
    assert p4inv == whole == 1200
    assert abs(rnvp - p4inv) <= 0.02 * p4inv


@pytest.mark.parametrize("model", list(BUILDERS))
def test_models_are_normalised_densities(model: str) -> None:
    torch.manual_seed(0)
    flow = build(model)
    randomized(flow, 0.02)
    extent = (-12.0, 12.0, -12.0, 12.0)
    density = metrics.log_prob(flow, figures.grid(extent, 300)).exp()
    assert float(density.mean()) * 24**2 == pytest.approx(1.0, abs=1e-3)


def test_chunks_are_pure_functions_of_seed_and_place() -> None:
    whole = list(TrainingChunks("rings", 1, 8, steps=130))
    assert [len(chunk) for chunk in whole] == [CHUNK, CHUNK, 30]
    resumed = list(TrainingChunks("rings", 1, 8, steps=130, start=CHUNK))
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], resumed, strict=True))
    longer = list(TrainingChunks("rings", 1, 8, steps=500))
    assert torch.equal(longer[2][:30], whole[2])
    assert not torch.equal(next(iter(TrainingChunks("rings", 2, 8, steps=130))), whole[0])


def test_held_out_sets_are_fixed_and_different() -> None:
    points, log_density = held_out("rings", "validation")
    again, _ = held_out("rings", "validation")
    assert torch.equal(points, again) and len(points) == 20_000
    assert not torch.equal(held_out("rings", "log")[0], points[:5_000])
    assert -float(log_density.mean()) == pytest.approx(get_target("rings").entropy, abs=0.03)


# --- measures -------------------------------------------------------------------------------------------------------


def test_kl_of_a_flow_at_the_identity() -> None:
    """KL(p‖N) = -H(p) + E|x|²/2 + log 2π; for the eight Gaussians E|x|² = 8 + 2 · 0.125."""
    target = get_target("eight-gaussians")
    flow = build("rnvp")  # the identity at the start
    exact = -target.entropy + 8.25 / 2 + math.log(2 * math.pi)
    assert metrics.kl_divergence(flow, *held_out(target.name, "test")) == pytest.approx(exact, abs=0.02)


def test_kl_is_infinite_where_the_flow_is_not_a_number() -> None:
    flow = build("rnvp")
    points, log_density = held_out("rings", "log")
    points = points.clone()
    points[0] = math.nan
    assert metrics.kl_divergence(flow, points, log_density) == math.inf


def test_leakage_counts_empty_places_and_broken_samples() -> None:
    target = get_target("checkerboard")
    x = torch.tensor([[1.0, 1.0], [1.0, 3.0], [100.0, 0.0], [math.nan, 0.0]])
    log_density = target.log_density(x)
    assert metrics.leakage(target, log_density) == pytest.approx(0.75)
    assert metrics.leakage(target, held_out("checkerboard", "log")[1]) == 0.0


def test_inverse_residual_and_logabsdet_error_see_a_wrong_inverse() -> None:
    flow = build("p4inv")
    assert measures.inverse_residual(flow) < 1e-5 and measures.logabsdet_error(flow) < 1e-5
    perturbation = next(iter(__import__("p4torch").sites(flow))).perturbation
    perturbation.tracked.inverse[7, 0, 1] += 0.25
    perturbation.tracked.logabsdet[7] += 0.5
    assert measures.inverse_residual(flow) == pytest.approx(0.25)
    assert measures.logabsdet_error(flow) == pytest.approx(0.5, abs=1e-6)


# --- one job --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """A job that nobody stops: its folder and row."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("whole")
    return path, run_job(JOB, path, lambda progress: False)


def test_a_job_leaves_its_run_folder(whole) -> None:
    path, row = whole
    assert sorted(os.listdir(path)) == [
        "checkpoint.pt",
        "config.json",
        "metrics.jsonl",
        "provenance.json",
        "weights.safetensors",
    ]
    assert json.loads((path / "config.json").read_text()) == JOB.fields()
    assert [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [150]
    start = -get_target(JOB.target).entropy + 8.25 / 2 + math.log(2 * math.pi)
    assert row["kl"] < start / 2
    assert row["merged"] + row["skipped"] == 200 * (150 // 20)
    assert 0 < row["inverse_residual"] < 1e-3 and row["round_trip"] < 1e-2 and row["parameters"] == 1200
    assert row["data_leakage"] < row["leakage"] < 1 and row["steps_per_second"] > 0


@pytest.mark.parametrize("model", list(BUILDERS))
def test_a_stopped_job_goes_on_exactly(whole, tmp_path: Path, model: str) -> None:
    job = replace(JOB, model=model, every=30)  # 50 is in the middle of an interval
    expected = run_job(job, tmp_path / "whole", lambda progress: False)
    assert run_job(job, tmp_path / "cut", lambda progress: progress.step >= 50) is None
    assert run_job(job, tmp_path / "cut", lambda progress: progress.step >= 100) is None
    seen: list[int] = []
    row = run_job(job, tmp_path / "cut", lambda progress: bool(seen.append(progress.step)))
    assert seen == [150]
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert expected is not None and row is not None
    assert {**row, "steps_per_second": 0} == {**expected, "steps_per_second": 0}


def test_weights_are_plain_and_give_the_trained_model_back(whole) -> None:
    path, row = whole
    weights = load_file(path / "weights.safetensors")
    assert sorted(name.split(".")[-1] for name in weights) == ["bias", "weight"]
    flow = figure.load(JOB, lambda job: path)
    assert metrics.kl_divergence(flow, *held_out(JOB.target, "test")) == pytest.approx(row["kl"], abs=1e-4)


def test_a_checkpoint_of_another_job_is_refused(whole, tmp_path: Path) -> None:
    path, _ = whole
    (tmp_path / "checkpoint.pt").write_bytes((path / "checkpoint.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"learning_rate: expected 0.02, got 0.01"):
        run_job(replace(JOB, learning_rate=0.02), tmp_path, lambda progress: False)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


# --- configuration and results --------------------------------------------------------------------------------------


def test_the_shipped_learning_rates_cover_everything() -> None:
    config = resolve({})
    assert len(config.jobs()) == len(TARGETS) * len(MODELS) * 3
    assert {job.steps for job in config.jobs()} == {FULL["steps"]}


def test_what_is_asked_for_comes_before_presets_and_stored_values(tmp_path: Path) -> None:
    config = resolve({"steps": 77, "lr": 0.5}, kind="demo", short=True)
    assert config.steps == 77 and config.targets == SHORT["targets"] and config.batch == FULL["batch"]
    assert config.learning_rates["two-moons"] == dict.fromkeys(MODELS, 0.5)
    (tmp_path / "config.json").write_text(json.dumps(config.fields()))
    again = resolve({"batch": 9}, tmp_path / "config.json", kind="demo")
    assert again == replace(config, batch=9)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"targets": ("nine-gaussians",)}, "`targets` must be different names out of eight-gaussians, .*, got nine"),
        ({"models": ("glow",)}, "`models` must be different names out of rnvp, p4inv, whole, got glow"),
        ({"models": ("rnvp", "rnvp")}, "`models`"),
        ({"targets": ()}, "`targets` .* got none"),
        ({"steps": 0}, "`steps` must be an integer >= 1, got 0"),
        ({"batch": -1}, "`batch`"),
        ({"every": 0}, "`every`"),
        ({"seeds": (-1,)}, "`seeds` must be different integers from 0 to 2³¹ - 1, got -1"),
        ({"lr": math.nan}, "`lr` must be a positive number, got nan"),
    ],
)
def test_bad_settings_name_the_argument(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        resolve(overrides)


def test_learning_rate_files(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    path.write_text('{"best": {"rings": {"rnvp": 0.25}}}')
    assert tuned_rates(path) == {"rings": {"rnvp": 0.25}}
    with pytest.raises(ArgumentError, match="`lr` must be a positive number of p4inv on rings, got None"):
        resolve({"targets": ("rings",), "rates": path})
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="as --tune writes it"):
        tuned_rates(path)


def test_tuning_takes_the_lowest_finite_kl() -> None:
    config = Config(("rings",), ("rnvp",), (0,), 1, 1, 1, {})
    rows = [
        {"target": "rings", "model": "rnvp", "learning_rate": rate, "kl": kl}
        for rate, kl in ((0.1, None), (0.2, 0.7), (0.3, 0.6), (0.4, math.nan))
    ]
    assert best_rates(config, rows) == {"rings": {"rnvp": 0.3}}


def test_rows_are_means_and_spreads_over_seeds(whole) -> None:
    _, row = whole
    config = Config((JOB.target,), ("p4inv",), (0, 1), 150, 32, 20, one_rate(1e-2, (JOB.target,), ("p4inv",)))
    other = {**row, "seed": 1, "kl": row["kl"] + 0.2, "round_trip": 5.0}
    (result,) = summarise(config, [other, row])
    assert result["kl_mean"] == pytest.approx(row["kl"] + 0.1)
    assert result["kl_std"] == pytest.approx(0.2 / math.sqrt(2))
    assert result["seeds"] == [0, 1] and result["round_trip"] == 5.0 and result["leakage_std"] == 0.0
    lines = markdown([result]).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1 and "p4inv" in lines[2]
    (diverged,) = summarise(config, [{**row, "kl": None}])
    assert diverged["kl_mean"] == math.inf


def test_the_figure_is_drawn_from_what_jobs_left(whole, tmp_path: Path) -> None:
    path, _ = whole
    config = Config((JOB.target,), ("p4inv",), (0,), 150, 32, 20, one_rate(1e-2, (JOB.target,), ("p4inv",)))
    image = write_figure(tmp_path / "density", figure.draw(config, lambda job: path))
    assert image.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "density.pdf").read_bytes().startswith(b"%PDF")


def test_only_what_a_run_left_is_overwritten(tmp_path: Path) -> None:
    demo, full = {"kind": "demo", "steps": 1}, {"kind": "density", "steps": 1}
    prepare(tmp_path / "run", demo, resume=False)
    (tmp_path / "run" / "jobs" / "a").mkdir(parents=True)
    with pytest.raises(ArgumentError, match="`out` must be a new or empty folder"):
        clear_demo(tmp_path / "run", full)
        prepare(tmp_path / "run", full, resume=False)
    assert (tmp_path / "run" / "jobs" / "a").exists()
    clear_demo(tmp_path / "run", demo)
    prepare(tmp_path / "run", {**demo, "steps": 2}, resume=False)
    assert os.listdir(tmp_path / "run") == ["config.json"]
    with pytest.raises(CheckpointError, match="steps: expected 2, got 1"):
        prepare(tmp_path / "run", demo, resume=True)
    (tmp_path / "run" / "thesis.txt").write_text("")
    (tmp_path / "run" / "jobs").mkdir()
    with pytest.raises(ArgumentError, match="`out` must be a new or empty folder"):
        clear_demo(tmp_path / "run", demo)
        prepare(tmp_path / "run", demo, resume=False)
    assert len(os.listdir(tmp_path / "run")) == 3
