"""The patches experiment: data, the layers that are compared, jobs, results."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.flows.bijections import randomized

pytest.importorskip("sklearn")

from experiments.patches.clock import step_milliseconds
from experiments.patches.config import SHORT, TUNE_SEED, Config, Job, resolve
from experiments.patches.data import (
    FEATURES,
    SIDE,
    TEST_TILES,
    TILE_POINTS,
    TILES,
    bits_per_dimension,
    grey_images,
    mean_free_basis,
    patches,
    tile_patches,
)
from experiments.patches.figure import draw
from experiments.patches.gaussian import gaussian_nats
from experiments.patches.job import run_job
from experiments.patches.layers import DenseLinear, FixedLinear, LULinear, RelativeLinear
from experiments.patches.models import BASELINES, DIRECTIONS, MODELS, TITLES, Variant, build
from experiments.patches.run import best_rates
from experiments.patches.table import markdown, summarise

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.flows import BentIdentity
from p4torch.runs.folder import write_figure
from p4torch.testing import check_bijection

DOUBLE_ROUNDING = 1e-10
SINGLE_ROUNDING = 1e-4
#: Of a mean of 200,000 samples of unit variance and heavy tails.
SAMPLING = 0.02

SMALL = Config(
    models=("p4inv", "dense"),
    ranks=(2,),
    every=(5,),
    directions=("random",),
    seeds=(0,),
    layers=2,
    steps=20,
    interval=10,
)


def small_job(**changes: Any) -> Job:
    return replace(SMALL.jobs(dict.fromkeys((variant.name for variant in SMALL.variants()), 1e-2))[0], **changes)


# --- data ----------------------------------------------------------------------------------------------------------


def test_the_basis_is_orthonormal_and_orthogonal_to_the_mean() -> None:
    basis = mean_free_basis(64).double()
    assert (basis.mT @ basis - torch.eye(63, dtype=torch.float64)).abs().max() < SINGLE_ROUNDING
    assert basis.sum(0).abs().max() < SINGLE_ROUNDING


def test_patches_of_a_tile_are_its_windows() -> None:
    image = torch.arange(427 * 640, dtype=torch.float64).view(427, 640)
    got = tile_patches(image)
    height, width = 427 // TILES[0], 640 // TILES[1]
    assert got.shape == (TILES[0] * TILES[1], (height - SIDE + 1) * (width - SIDE + 1), SIDE**2)
    tile, top, left = 17, 3, 5  # row 1, column 5 of the tiles
    corner = image[height + top, 5 * width + left]
    patch = got[tile, top * (width - SIDE + 1) + left].view(SIDE, SIDE)
    assert patch[0, 0] == corner and patch[2, 3] == corner + 2 * 640 + 3


def test_no_pixel_is_in_two_tiles() -> None:
    numbers = torch.arange(427 * 640, dtype=torch.float64).view(427, 640)
    pixels = [set(tile.unique().tolist()) for tile in tile_patches(numbers)]
    assert sum(map(len, pixels)) == len(set().union(*pixels))


def test_photographs_are_grey_levels() -> None:
    images = grey_images()
    assert [image.shape for image in images] == [(427, 640)] * 2
    assert all(image.dtype == torch.uint8 and image.max() > 200 for image in images)


def test_points_have_unit_mean_variance_and_batches_are_pure_functions() -> None:
    data = patches()
    points = data.batches(0, 0, 100, 2000)
    assert points.shape == (100, 2000, FEATURES)
    assert float(points.var((0, 1)).mean()) == pytest.approx(1.0, abs=SAMPLING)
    assert torch.equal(data.batches(3, 1, 2, 5), data.batches(3, 1, 2, 5))
    assert not torch.equal(data.batches(3, 1, 2, 5), data.batches(3, 2, 2, 5))


def test_held_out_sets_are_fixed_and_share_no_patch() -> None:
    data = patches()
    test = data.held_out("test")
    assert test.shape == (2 * TEST_TILES, TILE_POINTS, FEATURES)
    assert torch.equal(test, data.held_out("test"))
    textured = [levels.flatten(0, -2)[levels.flatten(0, -2).float().std(-1) > 5] for levels in data.levels.values()]
    rows = [set(map(tuple, levels.tolist())) for levels in textured]
    assert not rows[0] & rows[1]


def test_units() -> None:
    """A uniform density over the grey levels costs 8 bits a dimension; nats of y and of Qᵀx differ by 63 log s."""
    assert bits_per_dimension(0.0) == 8.0
    assert bits_per_dimension(FEATURES * math.log(2)) == pytest.approx(7.0)
    data = patches()
    cube = torch.randint(256, (1, 64))
    noise = [torch.rand(1, 64, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    expected = ((cube + noise[0]) / 256) @ data.basis * data.scale
    assert torch.allclose(data.points(cube, torch.Generator().manual_seed(5)), expected, atol=SINGLE_ROUNDING)
    assert data.unit == pytest.approx(FEATURES * math.log(data.scale))


# --- layers ----------------------------------------------------------------------------------------------------------


def random_matrix(n: int = 5) -> torch.Tensor:
    return torch.randn(n, n, dtype=torch.float64) + 2 * torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("layer", [DenseLinear, FixedLinear, LULinear, RelativeLinear])
def test_layers_start_at_the_same_matrix_and_are_bijections(layer: Any) -> None:
    start = random_matrix()
    module = layer(start).eval()
    x = torch.randn(7, 5, dtype=torch.float64)
    z, logabsdet = module(x)
    assert (z - x @ start.mT).abs().max() < DOUBLE_ROUNDING
    assert logabsdet.item() == pytest.approx(float(torch.linalg.slogdet(start).logabsdet), abs=DOUBLE_ROUNDING)
    randomized(module, 0.1)
    z, logabsdet = module(x)
    back, negative = module.inverse(z)
    assert (back - x).abs().max() < DOUBLE_ROUNDING
    assert (logabsdet + negative).item() == pytest.approx(0.0, abs=DOUBLE_ROUNDING)
    check_bijection(lambda: layer(random_matrix()).eval(), 5, compile=False)


def test_the_relative_gradient_is_the_true_one_times_the_gram_matrix() -> None:
    """The hook makes (G Wᵀ - I) W of G = ∂ℓ/∂W; the truth is ∂(ℓ - log|det W|)/∂W = G - W⁻ᵀ, times WᵀW."""
    start, x = random_matrix(), torch.randn(9, 5, dtype=torch.float64)
    dense, relative = DenseLinear(start), RelativeLinear(start)
    for layer in (dense, relative):
        z, logabsdet = layer(x)
        bent, slopes = BentIdentity()(z)
        loss = bent.square().sum(-1) / 2 - slopes - logabsdet
        loss.mean().backward()
    assert dense.weight.grad is not None and relative.weight.grad is not None and relative.bias.grad is not None
    expected = dense.weight.grad @ start.mT @ start
    assert (relative.weight.grad - expected).abs().max() < DOUBLE_ROUNDING * expected.abs().max()
    assert torch.equal(relative.bias.grad, dense.bias.grad)


def test_the_relative_layer_tells_its_determinant_in_evaluation_alone() -> None:
    layer = RelativeLinear(random_matrix())
    assert float(layer(torch.randn(2, 5, dtype=torch.float64))[1]) == 0.0
    assert layer.eval().logabsdet() == torch.linalg.slogdet(layer.weight).logabsdet


def test_lu_trains_as_many_numbers_as_dense() -> None:
    counts = [sum(value.numel() for value in layer(random_matrix()).parameters()) for layer in (DenseLinear, LULinear)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("model", MODELS)
def test_all_models_start_as_the_same_flow(model: str) -> None:
    options = {
        "p4inv": Variant("p4inv", 2, 10, "random"),
        "blocks": Variant("blocks", every=10, block=21),
        "triangular": Variant("triangular", every=1000),
    }
    variant = options.get(model, Variant(model))
    x = patches().held_out("validation")[0]
    outputs = []
    for each in (Variant("dense"), variant):
        torch.manual_seed(4)
        outputs.append(build(each, 3).eval().log_prob(x))
    assert (outputs[0] - outputs[1]).abs().max() < SINGLE_ROUNDING * outputs[0].abs().max()
    assert set(TITLES) == {*BASELINES, "p4inv", "blocks", "triangular"}


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_is_reproducible_and_learns() -> None:
    job = small_job(steps=30)
    row, again = run_job(job), run_job(job)
    assert row is not None and again is not None
    assert [point[0] for point in row["curve"]] == [10, 20, 30]
    assert [point[2] for point in row["curve"]] == [point[2] for point in again["curve"]]
    assert row["curve"][0][2] < row["curve"][-1][2] == row["held_out"]
    assert row["merged"] == 2 * (30 // 5) and row["skipped"] == 0 and not row["diverged"]
    assert row["logabsdet_error"] < SINGLE_ROUNDING
    assert len(row["tiles"]) == 2 * TEST_TILES
    assert row["parameters"] == 2 * (2 * 2 * FEATURES + FEATURES)


@pytest.mark.parametrize("block, title", [(FEATURES, "all coordinates"), (20, "blocks of 20")])
def test_a_job_with_blocks_learns(block: int, title: str) -> None:
    config = replace(SMALL, models=("blocks",), blocks=(block,))
    (variant,) = config.variants()
    (job,) = config.jobs({variant.name: 1e-3})
    row = run_job(replace(job, steps=30))
    assert row is not None and row["curve"][0][2] < row["curve"][-1][2] and not row["skipped"]
    assert row["merged"] == 2 * (30 // 5) and title in job.title
    assert row["parameters"] == 2 * (FEATURES // block * block**2 + FEATURES)


def test_a_job_stops_when_it_is_asked_to_and_when_it_diverges() -> None:
    reports = itertools.count()
    assert run_job(small_job(), lambda progress: next(reports) == 1) is None
    row = run_job(small_job(model="dense", rank=0, every=0, directions="", learning_rate=1e30, steps=300))
    assert row is not None and row["diverged"] and row["curve"][-1][0] < 300


def test_the_gaussian_is_between_the_start_and_its_training_data() -> None:
    row = run_job(small_job(model="fixed", rank=0, every=0, directions="", steps=1))
    assert row is not None and row["held_out"] < gaussian_nats("test") < 100


def test_the_clock_times_every_variant() -> None:
    times = step_milliseconds(replace(SMALL, clock_steps=2))
    assert set(times) == {variant.name for variant in SMALL.variants()} and min(times.values()) > 0


# --- configuration and results ---------------------------------------------------------------------------------------


def test_the_grid() -> None:
    config = Config()
    names = [variant.name for variant in config.variants()]
    assert len(names) == len(set(names)) == 4 + 4 * 3 * len(DIRECTIONS) + 2 * 3 + 3  # the last: triangular
    assert len(config.tuning()) == len(names) * len(config.learning_rates)
    assert {job.seed for job in config.tuning()} == {TUNE_SEED}
    jobs = config.jobs(dict.fromkeys(names, 0.5))
    assert len({job.name for job in [*jobs, *config.tuning()]}) == len(jobs) + len(config.tuning())
    assert replace(config, learning_rates=(0.5,)).tuning() == []


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"models": ("glow",)}, "`models` must be different names out of p4inv, blocks, triangular, .*, got glow"),
        ({"ranks": (0,)}, "`ranks` must be different integers from 1 to 2³¹ - 1, got 0"),
        ({"every": (10, 10)}, "`every` must be different integers"),
        ({"directions": ("up",)}, "`directions` must be different names out of random"),
        ({"seeds": (TUNE_SEED,)}, "`seeds` must be without 1000"),
        ({"learning_rates": (-1.0,)}, "`lr` must be a positive number, got -1.0"),
        ({"learning_rates": ()}, "`lr` must be different positive numbers"),
        ({"steps": 0}, "`steps` must be an integer >= 1, got 0"),
        ({"optimizer_state": "burn"}, "`optimizer_state` must be one of reset_directions, .*, got 'burn'"),
    ],
)
def test_bad_settings_name_the_argument(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        resolve(overrides)


def test_a_stored_configuration_comes_back(tmp_path: Path) -> None:
    stored = tmp_path / "config.json"
    config = resolve({"steps": 7}, stored, short=True)  # no such file yet
    assert config.steps == 7 and config.ranks == SHORT["ranks"]
    stored.write_text(json.dumps(config.fields()))
    assert resolve({}, stored) == config
    stored.write_text("{}")
    with pytest.raises(CheckpointError, match="must be the configuration of a patches run"):
        resolve({}, stored)


def result(job: Job, held_out: float | None, tiles: list[float]) -> dict[str, Any]:
    return {
        **job.fields(),
        "parameters": 1,
        "validation": held_out,
        "best_step": 20,
        "held_out": held_out,
        "tiles": tiles,
        "diverged": held_out is None,
        "curve": [[10, 1.0, 100.0], [20, 2.0, held_out]],
        "step_milliseconds": 2.0,
        "logabsdet_error": 0.0,
        "merged": 3,
        "skipped": 1,
    }


def test_rates_are_chosen_by_validation_and_never_diverged() -> None:
    config = replace(SMALL, models=("dense",), learning_rates=(0.1, 0.2, 0.3))
    rows = [result(job, value, []) for job, value in zip(config.tuning(), (1.0, 2.0, None), strict=True)]
    assert best_rates(config, rows) == {"dense": 0.2}
    assert best_rates(replace(config, learning_rates=(0.7,)), []) == {"dense": 0.7}


def test_results_are_means_over_seeds_with_paired_errors_over_tiles(tmp_path: Path) -> None:
    config = replace(SMALL, models=("p4inv", "dense", "blocks"), blocks=(21,), seeds=(0, 1))
    values = {("p4inv", 0): [10.0, 20.0], ("p4inv", 1): [14.0, 24.0], ("dense", 0): [11, 22], ("dense", 1): [11, 22]}
    values |= {("blocks", seed): [12.0, 23.0] for seed in (0, 1)}
    rows = []
    for job in config.jobs(dict.fromkeys((variant.name for variant in config.variants()), 0.1)):
        tiles = [float(value) for value in values[job.model, job.seed]]
        rows.append(result(job, sum(tiles) / 2, tiles))
    clock = {variant.name: 500.0 for variant in config.variants()}
    p4inv, dense, blocks = summarise(config, rows, clock)
    assert p4inv["held_out_mean"] == 17.0 and p4inv["held_out_std"] == pytest.approx(math.sqrt(8))
    assert p4inv["over_dense"] == 0.5 and p4inv["over_dense_error"] == pytest.approx(0.5)
    assert p4inv["tile_error"] == 5.0 and p4inv["curve"][0] == [10, 5.0, 100.0] and p4inv["skipped"] == 2
    assert blocks["block"] == 21 and blocks["over_dense"] == 1.0
    lines = markdown([p4inv, dense], 5.0).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert "+0.50 ± 0.50" in lines[2] and "Gaussian" in lines[4]
    image = write_figure(tmp_path / "patches", draw([p4inv, dense, blocks], 5.0))
    assert image.read_bytes().startswith(b"\x89PNG") and (tmp_path / "patches.pdf").exists()


def test_a_diverged_training_is_told_and_drawn(tmp_path: Path) -> None:
    config = replace(SMALL, models=("dense",))
    rows = [result(job, None, []) for job in config.jobs({"dense": 0.1})]
    (row,) = summarise(config, rows, {"dense": 1.0})
    assert row["held_out_mean"] == -math.inf and row["over_dense"] is None
    assert "-inf" in markdown([row], 0.0)
    assert write_figure(tmp_path / "patches", draw([row], 0.0)).exists()
