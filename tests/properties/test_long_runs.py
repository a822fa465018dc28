"""Every property through 10,000 noisy Adam steps with a merge every 20, in float32, at n = 64."""

from __future__ import annotations

import pytest
import torch
from tests.constructors import PERTURBATIONS, Large, Row
from torch import Tensor, nn

import p4torch as p4
from p4torch import linalg, properties
from p4torch.testing._cases import default_sample

STEPS, EVERY = 10_000, 20
LEARNING_RATE = 3e-3
#: The defect after a long run, relative to the norm of the base.
KEPT = 1e-5
#: The effective weight through a merge, relative to its largest entry.
UNCHANGED = 1e-5
#: A run that goes nowhere shows nothing: how far it must get, at least.
MOVED = 0.1
#: Gradients pull towards an element of S; so much noise is on top of them, in units of the entries of that element.
NOISE, NOISES = 1.0, 7

LARGE = {name: (row, row.large) for name, row in PERTURBATIONS.items() if row.large is not None}


class Run:
    """A module whose only tensor is perturbed, on its way to a second random element of S."""

    def __init__(self, row: Row, large: Large) -> None:
        self.factory = large.factory or row.factory
        sample = large.sample or default_sample(self.factory, large.shape)
        base, target = (_single(sample(torch.Generator().manual_seed(seed))) for seed in (1, 2))
        module = nn.Module()
        module.weight = nn.Parameter(base)
        p4.perturb(module, "weight", self.factory)
        (self.site,) = p4.sites(module)
        fused = not base.is_complex()  # torch has none for complex numbers
        self.optimizer = torch.optim.Adam(p4.parameter_groups(module), lr=LEARNING_RATE, fused=fused)
        self.scheduler = p4.MergeScheduler(module, self.optimizer, every=EVERY)
        noise = torch.randn(NOISES, *target.shape, dtype=target.dtype)
        size = NOISE * float(target.abs().square().mean().sqrt())
        self.pulls = size * (noise - noise.mean(0)) - target

    def walk(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.optimizer.zero_grad()
            weight = self.weight
            weight.backward(weight.detach() + self.pulls[step % NOISES])
            self.optimizer.step()
            self.scheduler.step()

    @property
    def weight(self) -> Tensor:
        return self.site.perturbation(self.site.base)

    def merged_weights(self) -> tuple[Tensor, Tensor]:
        """The effective weight before a merge, projected onto S where it had left S, and after it."""
        before = self.weight.detach()
        if bool((self.site.perturbation.defect(before) > torch.finfo(torch.float32).eps ** 0.5).any()):
            before = self.site.perturbation.project(before)
        report = self.site.merge(force=True)
        assert report.ok, report.reason
        return before, self.weight.detach()


def _single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_ten_thousand_noisy_steps(name: str) -> None:
    run = Run(*LARGE[name])
    start = run.weight.detach().clone()
    run.walk(0, STEPS)
    assert run.scheduler.merged + run.scheduler.skipped == STEPS // EVERY
    assert run.scheduler.merged > run.scheduler.skipped, run.scheduler.reports
    base = run.site.base.detach()
    norm = float(torch.linalg.matrix_norm(linalg.in_double(base), ord=2).max())
    defect = float(run.site.perturbation.defect(base).max()) / norm
    run.walk(STEPS, STEPS + EVERY // 2)
    before, after = run.merged_weights()
    change = float((after - before).abs().max() / before.abs().max())
    moved = float((after - start).abs().max() / start.abs().max())
    print(f"defect {defect:.2g}, change at a merge {change:.2g}, moved {moved:.2g}, norm {norm:.3g}")
    print(f"{run.scheduler.skipped} merges skipped")
    assert moved > MOVED
    assert defect <= KEPT
    assert change <= UNCHANGED


def test_every_property_is_there() -> None:
    classes = set()
    for row, large in LARGE.values():
        factory = large.factory or row.factory
        sample = large.sample or default_sample(factory, large.shape)
        classes.update(type(factory(sample(torch.Generator().manual_seed(1)))).__mro__)
    assert {getattr(properties, name) for name in properties.__all__} <= classes
