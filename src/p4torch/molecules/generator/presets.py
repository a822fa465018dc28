"""Schedules by name."""

from __future__ import annotations

import math
from dataclasses import replace

from p4torch.errors import ArgumentError
from p4torch.molecules.generator.architectures import architecture
from p4torch.molecules.generator.schedule import (
    MERGE_EVERY,
    PERTURBATION_RATE,
    WHOLE_MERGE_EVERY,
    WHOLE_PERTURBATION_RATE,
    Phase,
    Schedule,
)

#: Steps on forces, of flows that have them in their presets, or are asked to. At 3e-4 large weights grow: after 480
#: steps the effective sample size of a flow that likelihood had brought to 85 % was 75 %, at 1e-4 it was 86 %.
FORCES = Phase(6_000, samples=256, learning_rate=1e-4, likelihood=0.1, forces=True)
#: The paper's: Krämer, Köhler and Noé (2020), section 4.2; energy steps have frames, too, lest modes be lost.
PAPER = (Phase(40_000), replace(FORCES, steps=0), Phase(2_000, samples=4_000, learning_rate=1e-5))
#: Spline flows learn from forces. By KL(q‖p), at a rate of 1e-4, one lost a third of its effective sample size:
#: rare clashes ruled the gradient.
SPLINE = (Phase(24_000), FORCES, Phase(0, samples=1_024, learning_rate=1e-5))

#: Of all steps, by preset; "quick" is ten minutes on two cores.
FRACTIONS = {"paper": 1.0, "quick": 0.125, "check": 0.001}
PRESETS = tuple(FRACTIONS)


def schedule(
    model: str,
    preset: str = "paper",
    *,
    likelihood_steps: int | None = None,
    force_steps: int | None = None,
    energy_steps: int | None = None,
    merge_every: int | None = None,
    perturbation_rate: float | None = None,
    seed: int = 0,
) -> Schedule:
    """The phases of a model, cut to the preset's share of their steps; 0 steps leave a phase out.

    The learning rate of perturbations is `PERTURBATION_RATE` / √rank of that of other parameters, if none is given: a
    step of each direction moves W, and what they do together at random grows like √rank. Layers of whole matrices
    have `WHOLE_PERTURBATION_RATE`, and are merged every `WHOLE_MERGE_EVERY` steps, if no other number is given.

    Raises:
        ArgumentError: for another model or preset, or no steps at all.
    """
    rank = architecture(model).rank
    requested = {"likelihood_steps": likelihood_steps, "force_steps": force_steps, "energy_steps": energy_steps}
    for name, steps in requested.items():
        if steps is not None and steps < 0:
            raise ArgumentError.of(name, "an integer >= 0", steps)
    if preset not in FRACTIONS:
        raise ArgumentError.of("preset", " or ".join(PRESETS), repr(preset))
    fraction = FRACTIONS[preset]
    phases = []
    for phase, steps in zip(SPLINE if model.startswith("spline") else PAPER, requested.values(), strict=True):
        count = math.ceil(phase.steps * fraction) if steps is None else steps
        if count != 0:
            phases.append(replace(phase, steps=count))
    if not phases:
        raise ArgumentError.of("likelihood_steps", ">= 1 where force_steps = energy_steps = 0", 0)
    if rank is None:
        interval, rate = WHOLE_MERGE_EVERY, WHOLE_PERTURBATION_RATE
    else:
        interval, rate = MERGE_EVERY, PERTURBATION_RATE / math.sqrt(rank)
    interval = interval if merge_every is None else merge_every
    return Schedule(tuple(phases), interval, rate if perturbation_rate is None else perturbation_rate, seed=seed)
