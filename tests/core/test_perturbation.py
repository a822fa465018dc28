"""The general checks on every perturbation of the table, and on one that a user might write."""

from __future__ import annotations

import doctest
from typing import ClassVar

import pytest
import torch
from tests.constructors import PERTURBATIONS, Row
from torch import Tensor, nn

import p4torch as p4
from p4torch import testing
from p4torch.testing import check_perturbation
from p4torch.testing._cases import default_sample


@pytest.mark.parametrize("row", PERTURBATIONS.values(), ids=PERTURBATIONS.keys())
def test_table(row: Row) -> None:
    check_perturbation(row.factory, **row.options)


class Symmetric(p4.Perturbation):
    """S = symmetric matrices, A + u vᵀ + v uᵀ; u = 0, v random. What a user writes: four methods."""

    directions: ClassVar[tuple[str, ...]] = ("v",)

    def __init__(self, base: Tensor) -> None:
        super().__init__(base)
        self.u = nn.Parameter(base.new_zeros(base.shape[:-1]))
        self.v = nn.Parameter(base.new_zeros(base.shape[:-1]))
        self.reset(torch.default_generator)

    def forward(self, base: Tensor) -> Tensor:
        product = self.u[..., :, None] * self.v[..., None, :]
        return base + product + product.mT

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.u.zero_()
        if generator is not None:
            self.v.copy_(torch.randn(self.v.shape, generator=generator, dtype=torch.float64))

    def defect(self, tensor: Tensor) -> Tensor:
        return (tensor - tensor.mT).abs().amax((-2, -1))

    def project(self, tensor: Tensor) -> Tensor:
        return (tensor + tensor.mT) / 2


def test_a_users_own_property() -> None:
    check_perturbation(Symmetric)


class Hermitian(Symmetric):
    """The same over the complex numbers."""

    def forward(self, base: Tensor) -> Tensor:
        product = self.u[..., :, None] * self.v[..., None, :].conj_physical()
        return base + product + product.mT.conj_physical()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.u.zero_()
        if generator is not None:
            self.v.copy_(torch.randn(self.v.shape, generator=generator, dtype=torch.complex128))

    def defect(self, tensor: Tensor) -> Tensor:
        return (tensor - tensor.mH).abs().amax((-2, -1))

    def project(self, tensor: Tensor) -> Tensor:
        return (tensor + tensor.mH) / 2


def test_a_complex_property() -> None:
    def sample(generator: torch.Generator) -> Tensor:
        matrix = torch.randn(4, 4, generator=generator, dtype=torch.complex128)
        return matrix + matrix.mH

    check_perturbation(Hermitian, sample=sample, steps=200, compile=False)


class Update(Symmetric):
    """S = all tensors `(m, n)`: a tall matrix, to which nothing square may happen."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base)
        self.v = nn.Parameter(base.new_zeros(base.shape[:-2] + base.shape[-1:]))
        self.reset(torch.default_generator)

    def forward(self, base: Tensor) -> Tensor:
        return base + self.u[..., :, None] * self.v[..., None, :]

    def defect(self, tensor: Tensor) -> Tensor:
        return tensor.new_zeros(tensor.shape[:-2])

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        return x @ base.mT + (x @ self.v[..., None]) * self.u[..., None, :]


def test_a_property_of_tall_matrices() -> None:
    check_perturbation(Update, shape=(7, 3), steps=200, compile=False)


class DeadStart(Symmetric):
    """Both factors zero: a stationary point."""

    def reset(self, generator: torch.Generator | None) -> None:
        super().reset(None)
        with torch.no_grad():
            self.v.zero_()


class Leaves(Symmetric):
    """Leaves S, and its projection does not help."""

    def forward(self, base: Tensor) -> Tensor:
        return base + self.u[..., :, None] * self.v[..., None, :]

    def project(self, tensor: Tensor) -> Tensor:
        return tensor


class Biased(Symmetric):
    """R_B0 is not the identity."""

    def forward(self, base: Tensor) -> Tensor:
        return super().forward(base) + 1e-3


class WrongDeterminant(Symmetric):
    """A fast method that disagrees with the general one."""

    def logabsdet(self, base: Tensor) -> Tensor:
        return torch.linalg.slogdet(base)[1]


class Unused(Symmetric):
    """A parameter that no gradient reaches."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base)
        self.w = nn.Parameter(base.new_zeros(base.shape[:-1]))


class Branches(Symmetric):
    """A graph break: the forward looks at numbers."""

    def forward(self, base: Tensor) -> Tensor:
        result = super().forward(base)
        return result if float(result.detach().sum()) else result.clone()


class Ordinary(Symmetric):
    """Reads a merged base without noticing the batch."""

    def reset(self, generator: torch.Generator | None) -> None:
        super().reset(generator)
        if generator is not None:
            with torch.no_grad():
                self.v.copy_(torch.randn_like(self.v))  # the global generator: not a function of (seed, site, index)


@pytest.mark.filterwarnings("ignore::p4torch.ProjectionWarning")
@pytest.mark.parametrize(
    ("factory", "check"),
    [
        (DeadStart, "tangent"),
        (Leaves, "walk: defect"),
        (Biased, "identity"),
        (WrongDeterminant, "tracked"),
        (Unused, "gradients"),
        (Branches, "compile"),
        (Ordinary, "save and load"),
    ],
)
def test_the_checks_find_what_is_broken(factory: type[p4.Perturbation], check: str) -> None:
    with pytest.raises(AssertionError, match=f"^{check}"):
        check_perturbation(factory, shape=(4, 4), steps=50)


def test_checks_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    check_perturbation(Symmetric, shape=(3, 3), steps=20, compile=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_example_in_the_docs_runs() -> None:
    assert doctest.testmod(testing.perturbations).failed == 0


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_every_perturbation_can_be_printed(name: str) -> None:
    row = PERTURBATIONS[name]
    sample = row.options.get("sample") or default_sample(row.factory, row.options.get("shape", (6, 6)))
    perturbation = row.factory(sample(torch.Generator().manual_seed(0)))
    assert repr(perturbation).startswith(type(perturbation).__name__)


def test_stack_is_merged_or_skipped_matrix_by_matrix() -> None:
    base = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    perturbation = p4.Invertible(base, rank=1, scale=1.0)
    with torch.no_grad():
        perturbation.u.copy_(0.1 * torch.randn_like(perturbation.u))
        perturbation.u[2] = torch.inf
    weights = perturbation(base)
    report = perturbation.merge(base)
    assert (report.merged, report.skipped) == (3, 1)
    assert report.nonfinite == ("u",)
    assert not report.ok
    assert "not finite" in (report.reason or "")
    assert torch.equal(base[2], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(base[[0, 1, 3]], weights[[0, 1, 3]].detach())
    assert perturbation.skips.tolist() == [0, 0, 1, 0]


def test_missing_methods_say_what_to_define() -> None:
    bare = p4.Perturbation(torch.eye(2))
    for call in (lambda: bare(torch.eye(2)), lambda: bare.reset(None), lambda: bare.defect(torch.eye(2))):
        with pytest.raises(NotImplementedError, match="Perturbation must define"):
            call()
    with pytest.raises(NotImplementedError, match="no `project"):
        bare.project(torch.eye(2))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ([[1.0]], r"`base` must be a tensor .*, got builtins.list"),
        (torch.eye(2, dtype=torch.int64), "`base` must be of a floating-point dtype, got torch.int64"),
        (torch.tensor([[1.0, torch.nan], [0.0, torch.inf]]), "`base` must be finite, got 2 non-finite entries of 4"),
        (torch.zeros(3), r"`base` must be of at least 2 dimensions, got \(3,\)"),
    ],
)
def test_bad_bases(base: object, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.Perturbation(base)  # type: ignore[arg-type]


def test_admission_projects_with_a_warning() -> None:
    layer = nn.Linear(3, 3, bias=False)
    weight = layer.weight.detach().clone()
    with pytest.warns(p4.ProjectionWarning, match="Symmetric"):
        p4.perturb(layer, "weight", Symmetric)
    torch.testing.assert_close(layer.weight.detach(), (weight + weight.mT) / 2)


@pytest.mark.parametrize("old", ["limit", "set_gain", "concern", "commit", "candidate", "adapt"])
def test_a_class_that_overrides_an_old_name_is_told_the_new_one(old: str) -> None:
    with pytest.raises(TypeError, match=f"Own: `{old}` is now `"):
        type("Own", (p4.Perturbation,), {old: lambda self: None})


def test_the_old_name_of_gradient_directions_is_told() -> None:
    with pytest.raises(p4.ArgumentError, match="gradient, its new name, got 'informed'"):
        p4.LowRankUpdate(torch.eye(3), directions="informed")  # type: ignore[arg-type]
