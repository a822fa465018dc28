"""Markov chains whose proposals a generator draws: averages without weights, exact whatever the generator is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.inputs import refuse
from p4torch.molecules.generator.chains import Chains
from p4torch.molecules.generator.mala import MALA
from p4torch.molecules.generator.molecular_flow import BATCH, MolecularFlow
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.trajectory import check_frames

#: So many samples for each chain are drawn, at most, to find states of positive weight to start from.
ATTEMPTS = 100


@torch.no_grad()
def sample_mcmc(
    generator: MolecularFlow,
    steps: int,
    chains: int = 16,
    *,
    local: MALA | None = None,
    start: Tensor | None = None,
    discard: int = 0,
    seed: int = 0,
) -> Chains:
    """Frames without weights, from Markov chains whose proposals are samples of a generator.

    Independence Metropolis-Hastings: a sample x' replaces x with probability min(1, w(x') / w(x)), w the weight of
    `Samples`. Any generator that reaches all configurations gives the Boltzmann distribution; a poor one, slowly.

    After each such move, `local` ones keep exp(-u(x)) dx of Cartesian coordinates. They do not depend on where the
    molecule lies and how it is turned, so what they do to its shape keeps the distribution of shapes: the target of w.
    They change log q, too: w(x) is computed anew from x, up to the rounding of the flow in its own dtype.

    Args:
        generator: trained; its samples are drawn in large batches.
        steps: recorded frames of each chain, with one proposal each.
        chains: how many run beside each other.
        local: moves after each of the generator's.
        start: a frame for each chain, `(chains, atoms, 3)` in nm; by default, samples of positive weight.
        discard: steps before the first recorded one, in which chains forget their start.
        seed: of all random numbers.

    Raises:
        ArgumentError: counts too small; frames to start from that are unusable; a generator whose samples have no
            weight.

    Source: Hastings, Biometrika 57 (1970) 97; Tierney, Annals of Statistics 22 (1994) 1701.
    """
    began = time.perf_counter()
    total = check_integer("steps", steps, 1) + check_integer("discard", discard, 0)
    check_integer("chains", chains, 1)
    draws = torch.Generator().manual_seed(seed)
    state = _sampled_starts(generator, chains, draws) if start is None else _given_starts(generator, chains, start)
    frames, energies, weights, accepted, moves = [], [], [], [], []
    for part in _proposals(generator, total, chains, 1 if local else total, draws):
        log_weights = part.log_weights.reshape(-1, chains)
        log_uniform = torch.rand(log_weights.shape, generator=draws, dtype=torch.float64).log()
        rows = metropolis(state.log_weights, log_weights, log_uniform)
        visited = Samples.cat([state, part]).select((rows * chains + torch.arange(chains)).flatten())
        if local:
            visited, count = _moved(generator, visited, local, draws)
            moves.append(count)
        state = visited.select(slice(-chains, None))
        frames.append(visited.frames.float())
        energies.append(visited.energies)
        weights.append(visited.log_weights)
        accepted.append(rows == torch.arange(1, len(rows) + 1).unsqueeze(-1))
    return Chains(
        frames=torch.cat(frames)[discard * chains :],
        energies=torch.cat(energies)[discard * chains :],
        log_weights=torch.cat(weights)[discard * chains :],
        trajectory_ids=torch.arange(chains).repeat(steps),
        accepted=torch.cat(accepted)[discard:],
        local_acceptance=float(torch.stack(moves)[discard:].double().mean()) / local.steps if local else None,
        seconds=time.perf_counter() - began,
    )


def metropolis(current: Tensor, log_weights: Tensor, log_uniform: Tensor) -> Tensor:
    """Where chains are after each step: 0 for their start, k for the proposal of the k-th step, `(steps, chains)`.

    A proposal of log-weight -∞ is never accepted; from a state of log-weight ∞, none is.

    Args:
        current: log-weights of the starts, `(chains,)`.
        log_weights: of the proposals, `(steps, chains)`.
        log_uniform: logarithms of uniform random numbers in [0, 1), `(steps, chains)`.
    """
    row = torch.zeros(current.shape, dtype=torch.long)
    rows = torch.empty(log_weights.shape, dtype=torch.long)
    for step, (proposed, threshold) in enumerate(zip(log_weights, log_uniform, strict=True)):
        accepted = threshold < proposed - current
        current = proposed.where(accepted, current)
        row = row.masked_fill(accepted, step + 1)
        rows[step] = row
    return rows


def weighed(generator: MolecularFlow, frames: Tensor) -> Samples:
    """Frames `(n, atoms, 3)` as if the generator had drawn them; one that it cannot draw has log-weight ∞."""
    x = frames.double()
    z, logabsdet = generator.coordinates(x)
    log_prob = generator.log_density(z).double()
    energies = generator.potential.unregularised(x)
    log_weights = -energies - logabsdet - log_prob
    usable = log_weights.isfinite() & ~generator.coordinates.degenerate(x)
    return Samples(x, energies, log_prob, log_weights.where(usable, math.inf))


def _proposals(
    generator: MolecularFlow, steps: int, chains: int, size: int, draws: torch.Generator
) -> Iterator[Samples]:
    """Samples of `steps` steps, drawn for many of them together, handed out for at most `size` of them."""
    together = max(1, BATCH // chains)
    for first in range(0, steps, together):
        samples = generator.sample(min(together, steps - first) * chains, draws)
        for begin in range(0, len(samples), size * chains):
            yield samples.select(slice(begin, begin + size * chains))


def _moved(generator: MolecularFlow, state: Samples, local: MALA, draws: torch.Generator) -> tuple[Samples, Tensor]:
    """(the states after local moves, how many each made `(chains,)`); those without one are what they were."""
    x, count = local.run(state.frames.double(), generator.potential.unregularised, draws)
    moved = count > 0
    if bool(moved.any()):
        new = weighed(generator, x[moved])
        pool, place = Samples.cat([state, new]), torch.arange(len(state))
        place[moved] = len(state) + torch.arange(len(new))
        state = pool.select(place)
    return state, count


def _sampled_starts(generator: MolecularFlow, chains: int, draws: torch.Generator) -> Samples:
    """Samples of positive weight; the others are drawn again."""
    usable: list[Samples] = []
    for _ in range(ATTEMPTS):
        drawn = generator.sample(chains, draws)
        usable.append(drawn.select(drawn.log_weights.isfinite()))
        if sum(map(len, usable)) >= chains:
            return Samples.cat(usable).select(slice(chains))
    expected = f"one whose samples have positive weight: {chains} of {ATTEMPTS * chains} are needed to start from"
    raise ArgumentError.of("generator", expected, sum(map(len, usable)))


def _given_starts(generator: MolecularFlow, chains: int, start: Tensor) -> Samples:
    """The frames to start from."""
    check_frames(start, generator.system)
    if start.dim() != 3 or len(start) != chains:
        raise ArgumentError.of("start", f"of shape ({chains}, {generator.system.atoms}, 3)", tuple(start.shape))
    state = weighed(generator, start)
    refuse(~state.log_weights.isfinite(), "start", "frames that the generator can draw, of finite energy", "not")
    return state
