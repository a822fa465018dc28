"""The figure: a row a target; ground truth and the models, drawn from the weights that the jobs left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from experiments import figures, metrics
from experiments.density.config import Config, Job
from experiments.density.models import TITLES, build
from experiments.targets import get_target
from p4torch.flows import Flow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 240


def draw(config: Config, folder_of: Callable[[Job], Path]) -> Figure:
    """With the first seed's models."""
    jobs = {(job.target, job.model): job for job in config.jobs() if job.seed == config.seeds[0]}
    rows = []
    for name in config.targets:
        target = get_target(name)
        points = figures.grid(target.extent, _POINTS)
        images = [target.log_density(points)]
        images += [metrics.log_prob(load(jobs[name, model], folder_of), points) for model in config.models]
        rows.append(figures.DensityRow(name, target.extent, [image.view(_POINTS, _POINTS) for image in images]))
    columns = ["ground truth", *(TITLES[model] for model in config.models)]
    return figures.density_figure(columns, rows)


def load(job: Job, folder_of: Callable[[Job], Path]) -> Flow:
    """The trained model of a job."""
    with torch.random.fork_rng():
        flow = build(job.model)
    flow.load_state_dict(load_file(folder_of(job) / "weights.safetensors"))
    return flow
