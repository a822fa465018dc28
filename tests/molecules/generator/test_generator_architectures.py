"""Flows by name: sizes, where they start, densities."""

from __future__ import annotations

import pytest
import torch
from tests.molecules.generator.small import frames, small, stirred
from tests.molecules.systems import system_of

from p4torch import sites
from p4torch.errors import ArgumentError
from p4torch.flows import InvertibleLinear, Swap
from p4torch.molecules import BoltzmannGenerator
from p4torch.molecules.generator.architectures import affine, architecture, seeded, spline
from p4torch.training.measures import parameter_count

LAYOUT = small().coordinates.layout
#: There and back in float32, through two couplings.
ROUND_TRIP = 1e-4
PAPERS_RNVP = 735_050


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("rnvp", PAPERS_RNVP),
        ("p4inv", 744_050),
        ("p4inv-rank8", PAPERS_RNVP + 50 * (2 * 8 * 60 + 60)),
        ("p4inv-whole", PAPERS_RNVP + 50 * (60 * 60 + 60)),
    ],
)
def test_the_papers_numbers_of_parameters(name: str, parameters: int) -> None:
    assert LAYOUT.size == 60
    assert parameter_count(architecture(name).build(LAYOUT)) == parameters


def test_p4inv_starts_as_rnvp() -> None:
    """Its linear layers start as the swaps in whose place they are."""
    rnvp, p4inv = (
        seeded(lambda options=options: affine(LAYOUT, couplings=4, **options), 0) for options in ({}, {"rank": 3})
    )
    for first, second in zip(rnvp.bijection.bijections, p4inv.bijection.bijections, strict=True):
        if isinstance(first, Swap):
            assert isinstance(second, InvertibleLinear)
        else:
            with torch.no_grad():
                for value in first.parameters():
                    value += 0.05 * torch.randn_like(value)
            second.load_state_dict(first.state_dict())
    z = torch.randn(20, 60)
    torch.testing.assert_close(p4inv(z), rnvp(z))
    for there, back in zip(rnvp.bijection.inverse(z), p4inv.bijection.inverse(z), strict=True):
        torch.testing.assert_close(back, there, atol=ROUND_TRIP, rtol=ROUND_TRIP)


@pytest.mark.parametrize("model", ["rnvp", "p4inv", "spline-p4inv"])
def test_densities_of_samples_agree_in_both_directions(model: str) -> None:
    flow = stirred(small(model)).flow.double()
    with torch.no_grad():
        z, log_prob = flow.sample_with_log_prob(200, torch.Generator().manual_seed(0))
        torch.testing.assert_close(flow.log_prob(z), log_prob, atol=1e-8, rtol=0)  # float64


def test_mixing_layers_leave_torsions_alone() -> None:
    flow = seeded(lambda: spline(LAYOUT, mixing=True, couplings=3), 0)
    assert [site.base.shape for site in sites(flow)] == [(43, 43), (43, 43)]
    assert not list(sites(spline(LAYOUT, mixing=False)))


def test_splines_move_all_coordinates_and_the_same_halves_for_every_seed() -> None:
    z = torch.randn(5, 60).clamp(-3, 3)
    first, second = (stirred(small("spline-p4inv", seed=seed), 0.1) for seed in (0, 1))
    moved = (first.flow.bijection(z)[0] - z).abs() > 1e-6
    assert bool(moved.any(0).all())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.flow(z), second.flow(z))


def test_creating_leaves_the_global_generator_alone_and_depends_on_the_seed() -> None:
    before = torch.get_rng_state()
    made = [BoltzmannGenerator.create(system_of(), frames(), model="spline", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    states = [torch.cat([value.flatten() for value in one.flow.parameters()]) for one in made]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize("name", ["glow", "p4inv-rank0", "p4inv-rank", "p4inv-rank-2", "RNVP", "spline-rank8", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(
        ArgumentError, match="`model` must be rnvp, p4inv, p4inv-rank<k>, p4inv-whole, spline or spline-p4inv"
    ):
        architecture(name)
    with pytest.raises(ArgumentError, match="`model`"):
        BoltzmannGenerator.create(system_of(), frames(), model=name)


def test_coordinates_of_another_molecule_are_refused() -> None:
    generator = small()
    with pytest.raises(ArgumentError, match="`coordinates` must be of 22 atoms"):
        BoltzmannGenerator(system_of(), _Other(), generator.flow)  # type: ignore[arg-type]


class _Other:
    class layout:
        size = 54
