"""Markov chains with a generator's proposals: targets known in closed form, and what never may happen."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from tests.molecules.simulation.butane import butane, share_of
from tests.molecules.systems import shaken, system_of
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.flows import Chain, Flow, NormalAndUniform
from p4torch.molecules import MixedCoordinates, ZMatrix
from p4torch.molecules.generator import mcmc
from p4torch.molecules.generator.chains import Chains
from p4torch.molecules.generator.generator import BoltzmannGenerator
from p4torch.molecules.generator.mala import MALA
from p4torch.molecules.generator.mcmc import metropolis, weighed

#: Five states: weights w ∝ p / q, and the proposal's q; one that is proposed has no weight.
TARGET = torch.tensor([0.05, 0.3, 0.0, 0.25, 0.4], dtype=torch.float64)
PROPOSAL = torch.tensor([0.4, 0.1, 0.2, 0.25, 0.05], dtype=torch.float64)
#: Uniform numbers at the middles of so many cells tell a probability to half a cell.
CELLS = 1000
#: Standard errors that an average may be off by, at fixed seeds: by chance, one in 16,000 is.
ERRORS = 4.0
#: log q after a round trip through coordinates and flow in single precision, where it is of the order of 100.
ROUND_TRIP = 1e-3

STATES = len(TARGET)
TORSION = (0, 1, 2, 3)
REGION = (0.5, 2.5)


def log_weight() -> Tensor:
    return TARGET.log() - PROPOSAL.log()


# --- the core ---------------------------------------------------------------------------------------------------------


def test_transition_matrix_is_reversible() -> None:
    """All pairs of states, and all uniform numbers on a grid: P_ij = q_j min(1, w_j / w_i), so p_i P_ij = p_j P_ji."""
    log_uniform = ((torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS).log()
    weights = log_weight()
    occupied = (TARGET > 0).nonzero().flatten().tolist()
    moves = torch.zeros(STATES, STATES, dtype=torch.float64)
    for i in occupied:
        for j in range(STATES):
            current, proposed = weights[i].expand(CELLS), weights[j].expand(1, CELLS)
            moves[i, j] = PROPOSAL[j] * metropolis(current, proposed, log_uniform[None]).double().mean()
    flow = TARGET[:, None] * moves
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1 / CELLS)
    assert (moves[:, TARGET == 0] == 0).all()


def test_histogram_is_the_target() -> None:
    steps, chains = 4000, 64
    draws = torch.Generator().manual_seed(3)
    proposed = torch.multinomial(PROPOSAL, steps * chains, True, generator=draws).reshape(steps, chains)
    start = torch.ones(chains, dtype=torch.long)
    log_uniform = torch.rand(steps, chains, generator=draws, dtype=torch.float64).log()
    rows = metropolis(log_weight()[start], log_weight()[proposed], log_uniform)
    states = torch.cat([start[None], proposed]).gather(0, rows)[200:]  # the first steps remember the start
    frequencies = torch.stack([(states == state).double().mean(0) for state in range(STATES)])  # chains are independent
    error = frequencies.std(1) / math.sqrt(chains)
    assert ((frequencies.mean(1) - TARGET).abs() <= ERRORS * error).all()
    assert (error[TARGET > 0] < 0.01).all()  # or else the line above says nothing


def test_weights_of_zero_and_infinity() -> None:
    never, always = torch.full((1, 3), -math.inf), torch.zeros(1, 3)
    rows = metropolis(torch.tensor([0.0, -700.0, math.inf]), never, torch.full((1, 3), -math.inf))
    assert (rows == 0).all()
    assert metropolis(torch.tensor([-700.0, 0.0, math.inf]), always, -torch.ones(1, 3)).tolist() == [[1, 1, 0]]


# --- molecules --------------------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def chain_of_four() -> BoltzmannGenerator:
    """Butane, with proposals uniform in the torsion and a fifth too broad in the rest: no training."""
    system = butane()
    bonds, angles = 1.2 * torch.randn(2, 1000, 3, generator=generator(0), dtype=torch.float64)
    (r, s, t), (a, b, _) = (0.15 + bonds * (system.kT / 2e5) ** 0.5).T, (1.9 + angles * (system.kT / 400) ** 0.5).T
    zero = torch.zeros_like(r)
    first, third = torch.stack([r * a.cos(), r * a.sin(), zero], -1), torch.stack([s, zero, zero], -1)
    fourth = third + torch.stack([-t * b.cos(), t * b.sin() * 0.8, t * b.sin() * 0.6], -1)
    frames = torch.stack([first, torch.zeros_like(first), third, fourth], 1)
    coordinates = MixedCoordinates(ZMatrix(block=(0, 1, 2), rows=((3, 2, 1, 0),)), frames)
    layout = coordinates.layout
    return BoltzmannGenerator(system, coordinates, Flow(Chain([]), NormalAndUniform(layout.size, layout.torsions)))


@cache
def long_chains(local: MALA | None) -> Chains:
    """Of `chain_of_four`."""
    steps, chains = (3000, 16) if local is None else (200, 64)
    return chain_of_four().sample_mcmc(steps, chains, local=local, discard=50, seed=1)


@cache
def dipeptide() -> BoltzmannGenerator:
    """Alanine dipeptide, untrained."""
    torch.manual_seed(0)
    return BoltzmannGenerator.create(system_of(), shaken(system_of(), 50), model="spline")


@pytest.mark.parametrize("local", [None, MALA(2, 0.003)])
def test_torsion_has_its_distribution(local: MALA | None) -> None:
    """Against quadrature; a wrong log q after a local move would hold chains back, or let them go too early."""
    result = long_chains(local)
    inside = result.inside(TORSION, REGION).double()
    mixing = result.mixing(inside)
    exact = share_of(*REGION, chain_of_four().system.kT)
    error = math.sqrt(exact * (1 - exact) / mixing.effective_samples)
    assert abs(float(inside.mean()) - exact) < ERRORS * error
    assert error < 0.02
    assert mixing.inefficiency > 1 and mixing.autocorrelation_time == pytest.approx((mixing.inefficiency - 1) / 2)
    if local is not None:
        assert result.local_acceptance is not None and 0.3 < result.local_acceptance < 1


@pytest.mark.parametrize("local", [None, MALA(2, 0.003)])
def test_bonds_have_their_distribution(local: MALA | None) -> None:
    """p(r) ∝ r² exp(-k (r - r₀)² / 2kT), the factor r² from the volume of the shape's coordinates."""
    result = long_chains(local)
    grid = torch.linspace(0.12, 0.18, 4001, dtype=torch.float64)
    p = (2 * grid.log() - 2e5 * (grid - 0.15).square() / 2 / chain_of_four().system.kT).softmax(0)
    mean = float((p * grid).sum())
    deviation = float((p * (grid - mean).square()).sum().sqrt())
    for i, j in ((0, 1), (1, 2), (2, 3)):
        length = (result.frames[:, i].double() - result.frames[:, j].double()).norm(dim=-1)
        spread = (length - mean).square()
        for values, exact, scale in ((length, mean, deviation), (spread, deviation**2, math.sqrt(2) * deviation**2)):
            error = scale / math.sqrt(result.mixing(values).effective_samples)
            assert abs(float(values.mean()) - exact) < ERRORS * error
            assert error < 0.06 * scale


def test_weights_of_frames_are_those_of_samples() -> None:
    for model, tolerance in ((chain_of_four(), ROUND_TRIP), (dipeptide(), ROUND_TRIP)):
        samples = model.sample(200, generator(5))
        samples = samples.select(samples.log_weights.isfinite() & (samples.energies < 1e4))
        again = weighed(model, samples.frames)
        assert len(samples) > 5
        torch.testing.assert_close(again.log_prob, samples.log_prob, rtol=0, atol=tolerance)
        volume, volume_again = (s.log_weights + s.energies + s.log_prob for s in (samples, again))
        torch.testing.assert_close(volume_again, volume, rtol=0, atol=tolerance)


@pytest.mark.parametrize("local", [None, MALA(2, 0.003)])
def test_chains_know_the_weight_of_where_they_are(local: MALA | None) -> None:
    """Also after local moves: the weight that a chain came with would not do."""
    result = chain_of_four().sample_mcmc(30, 8, local=local, seed=7)
    again = weighed(chain_of_four(), result.frames)
    torch.testing.assert_close(again.log_weights, result.log_weights, rtol=0, atol=ROUND_TRIP)
    torch.testing.assert_close(again.energies, result.energies, rtol=0, atol=ROUND_TRIP)


@pytest.mark.parametrize("local", [None, MALA(2, 0.001)])
def test_dipeptide(local: MALA | None) -> None:
    steps, chains = 12, 4
    result = dipeptide().sample_mcmc(steps, chains, local=local, seed=4)
    assert result.frames.shape == (steps * chains, 22, 3) and result.frames.dtype == torch.float32
    assert result.energies.isfinite().all() and result.energies.dtype == torch.float64
    assert result.trajectory_ids.tolist() == list(range(chains)) * steps
    assert result.accepted.shape == (steps, chains)
    assert result.acceptance == pytest.approx(float(result.accepted.sum()) / (steps * chains))
    assert result.seconds > 0 and (result.local_acceptance is None) == (local is None)
    torch.testing.assert_close(dipeptide().system.energy(result.frames.double()), result.energies, rtol=1e-3, atol=0.1)
    again, other = (dipeptide().sample_mcmc(steps, chains, local=local, seed=seed) for seed in (4, 5))
    assert torch.equal(again.frames, result.frames) and torch.equal(again.accepted, result.accepted)
    assert not torch.equal(other.frames, result.frames)


def test_steps_are_the_same_however_many_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not accepted leaves the frame, also from one batch of samples to the next."""
    monkeypatch.setattr(mcmc, "BATCH", 64)
    frames = dipeptide().sample_mcmc(40, 4, seed=6)
    still = (frames.frames.reshape(40, 4, 22, 3).diff(dim=0) == 0).flatten(2).all(-1)
    assert torch.equal(still, ~frames.accepted[1:])


def test_start_and_discard() -> None:
    start = shaken(system_of(), 4, 0.0005).float()
    result = dipeptide().sample_mcmc(3, 4, start=start, seed=1)
    kept = ~result.accepted[0]  # an untrained generator finds nothing that good
    assert kept.all() and torch.equal(result.frames[:4], start)
    whole, cut = chain_of_four().sample_mcmc(20, 4, seed=3), chain_of_four().sample_mcmc(15, 4, discard=5, seed=3)
    assert torch.equal(whole.frames[20:], cut.frames) and torch.equal(whole.accepted[5:], cut.accepted)
    assert torch.equal(cut.trajectory_ids, whole.trajectory_ids[20:])


def test_chains_that_never_move_are_worth_nothing() -> None:
    frames, one, trajectory_ids = torch.zeros(6, 4, 3), torch.ones(6).double(), torch.arange(2).repeat(3)
    still = Chains(frames, one, one, trajectory_ids, torch.zeros(3, 2), None, 1.0)
    mixing = still.mixing()
    assert mixing.inefficiency == math.inf and mixing.effective_samples == 0
    assert mixing.effective_samples_per_second == 0


class _Bounded(MixedCoordinates):
    """All points whose torsion is above a limit count as such that no frame has."""

    limit = 0.0

    def outside(self, z: Tensor) -> Tensor:
        return super().outside(z) | (z[..., -1] > self.limit)


def bounded(limit: float) -> BoltzmannGenerator:
    """`chain_of_four`, with less of its torsion."""
    whole = chain_of_four()
    coordinates = _Bounded(whole.coordinates.zmatrix, reference=whole.system.positions)
    coordinates.load_state_dict(whole.coordinates.state_dict())
    coordinates.limit = limit
    return BoltzmannGenerator(whole.system, coordinates, whole.flow)


def test_no_frame_has_weight_zero() -> None:
    model = bounded(0.5)
    samples = model.sample(2000, generator(2))
    assert 0.2 < float((samples.log_weights == -math.inf).double().mean()) < 0.8
    result = model.sample_mcmc(300, 8, seed=2)
    z, _ = model.coordinates(result.frames.double())
    assert float(z[:, -1].max()) < 0.5 + ROUND_TRIP and result.acceptance > 0.02


def test_no_positive_weight_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="`generator` must be one whose samples have positive weight"):
        bounded(-math.inf).sample_mcmc(5, 2)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.0}, "steps"),
        ({"chains": 0}, "chains"),
        ({"discard": -1}, "discard"),
        ({"start": torch.zeros(3, 4, 3)}, "start"),
        ({"start": torch.zeros(2, 4, 3)}, "start"),  # all atoms in one place
        ({"start": torch.zeros(2, 5, 3)}, "x"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        chain_of_four().sample_mcmc(**{"steps": 2, "chains": 2, **arguments})  # type: ignore[arg-type]


def test_frames_are_weighed_in_the_dtype_of_the_flow() -> None:
    model = BoltzmannGenerator.create(system_of(), shaken(system_of(), 100), model="spline").double()
    result = weighed(model, shaken(system_of(), 3))
    assert torch.equal(result.log_prob, model.log_prob(result.frames)) and result.log_prob.dtype == torch.float64
