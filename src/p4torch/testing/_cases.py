"""What the checks of perturbations work with: cases in one dtype, random walks, and assertions that name the check."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.core.perturbation import Perturbation
from p4torch.errors import ProjectionWarning
from p4torch.merging.scheduler import MergeScheduler
from p4torch.parametrize.sites import Site, perturb, sites

Factory = Callable[[Tensor], Perturbation]
Sample = Callable[[torch.Generator], Tensor]

#: How far B is moved away from B₀: enough for every term of R_B to count, little enough for a merge to be accepted.
MOVE = 0.1
#: Noisy training: Adam's learning rate, and the merge interval in steps.
LEARNING_RATE, EVERY = 1e-2, 10

MATRIX_METHODS = ("matmul", "solve", "inverse", "logabsdet", "sign")


class _Holder(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


@dataclass(frozen=True)
class Case:
    """A perturbation to check, in one dtype. `site(j)` puts it on the j-th random element of S."""

    factory: Factory
    sample: Sample
    dtype: torch.dtype
    seed: int

    @property
    def eps(self) -> float:
        return torch.finfo(self.dtype).eps

    def generator(self, index: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + index)

    def element(self, index: int = 0) -> Tensor:
        drawn = self.sample(self.generator(index))
        return drawn.to(self.dtype.to_complex() if drawn.is_complex() else self.dtype)

    def site(self, index: int = 0) -> Site:
        return self.site_at(self.element(index))

    def site_at(self, base: Tensor) -> Site:
        return next(sites(perturb(_Holder(base.clone()), "weight", self.factory)))

    def moved(self, index: int = 0) -> Site:
        """A site whose B is away from B₀."""
        site = self.site(index)
        move(site, self.generator(100 + index))
        return site


def default_sample(factory: Factory, shape: tuple[int, ...]) -> Sample:
    def sample(generator: torch.Generator) -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) >= 2 and shape[-1] == shape[-2]:
            tensor = torch.eye(shape[-1], dtype=torch.float64) + 0.5 / shape[-1] ** 0.5 * tensor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProjectionWarning)
            return factory(tensor).right_inverse(tensor)

    return sample


@torch.no_grad()
def move(site: Site, generator: torch.Generator) -> None:
    for value in parameters_of(site).values():
        value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype), alpha=MOVE)


def parameters_of(site: Site) -> dict[str, nn.Parameter]:
    return dict(site.perturbation.own_parameters())


def doubled(perturbation: Perturbation) -> Perturbation:
    """A copy in double precision."""
    exact = copy.deepcopy(perturbation)
    exact._apply(lambda value: linalg.in_double(value) if value.is_floating_point() or value.is_complex() else value)
    return exact


def weight_of(site: Site) -> Tensor:
    return site.perturbation(site.base)


def overridden(site: Site) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """The matrix methods that the perturbation defines itself, with arguments for them beside the base."""
    rows, columns = site.base.shape[-2:] if site.base.dim() >= 2 else (0, -1)
    for name in MATRIX_METHODS:
        defined = getattr(type(site.perturbation), name) is not getattr(Perturbation, name)
        if defined and (rows == columns or name == "matmul"):
            x = torch.linspace(-1, 1, 3 * columns, dtype=torch.float64).reshape(3, columns).to(site.base)
            yield name, (x,) if name in ("matmul", "solve") else ()


class Run:
    """Noisy training of one site, from step to step; noise is a function of the step."""

    def __init__(self, case: Case) -> None:
        self.case, self.site = case, case.site()
        self.optimizer = torch.optim.Adam(parameters_of(self.site).values(), lr=LEARNING_RATE)
        self.scheduler = MergeScheduler(self.site.module, self.optimizer, every=EVERY, correct_every=EVERY)

    def walk(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.optimizer.zero_grad()
            weight = weight_of(self.site)
            noise = torch.randn(weight.shape, generator=self.case.generator(step), dtype=weight.dtype)
            (weight * noise).real.sum().backward() if weight.is_complex() else (weight * noise).sum().backward()
            self.optimizer.step()
            self.scheduler.step()

    def save(self) -> io.BytesIO:
        parts = (self.site.module, self.optimizer, self.scheduler)
        file = io.BytesIO()
        torch.save([part.state_dict() for part in parts], file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        module, optimizer, scheduler = torch.load(file, weights_only=True)
        self.site.module.load_state_dict(module)
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler)


def function_of_b(site: Site, method: str = "forward", *arguments: Tensor) -> Callable[..., Tensor]:
    """The result of a method as a pure function of B; complex ones as pairs of real numbers."""
    names = list(parameters_of(site))

    def function(*values: Tensor) -> Tensor:
        bound = _Bound(site.perturbation, method)
        named = {f"perturbation.{name}": value for name, value in zip(names, values, strict=True)}
        result = torch.func.functional_call(bound, named, (site.base, *arguments))
        return torch.view_as_real(result.resolve_conj()) if result.is_complex() else result

    return function


class _Bound(nn.Module):
    """A method of a perturbation as the forward of a module."""

    def __init__(self, perturbation: Perturbation, method: str) -> None:
        super().__init__()
        self.perturbation, self.method = perturbation, method

    def forward(self, base: Tensor, *arguments: Tensor) -> Tensor:
        return getattr(self.perturbation, self.method)(base, *arguments)


# --- assertions -------------------------------------------------------------------------------------------------


def require(check: str, truth: bool, message: str) -> None:
    if not truth:
        raise AssertionError(f"{check}: {message}")


def require_close(check: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """max|got - expected| <= tolerance · max(1, max|expected|)."""
    require(check, got.shape == expected.shape, f"shape {tuple(got.shape)}, not {tuple(expected.shape)}")
    error = float((got.detach() - expected.detach()).abs().max())
    allowed = tolerance * max(1.0, float(expected.detach().abs().max()))
    require(check, error <= allowed, f"off by {error:.3g}, allowed are {allowed:.3g} ({got.dtype})")


def require_equal(check: str, got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    require(check, got.keys() == expected.keys(), f"{sorted(got)}, not {sorted(expected)}")
    differ = [name for name, value in expected.items() if not torch.equal(got[name], value)]
    require(check, not differ, f"not bit by bit the same: {', '.join(differ)}")
