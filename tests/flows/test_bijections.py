"""Every bijection against `check_bijection`, and the check against broken ones."""

from collections.abc import Callable

import pytest
import torch
from tests.flows.bijections import BIJECTIONS, CONDITIONAL
from torch import Tensor, nn

from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, BentIdentity, Bijection, Chain, Inverse, InvertibleLinear, InvertibleMLP, Swap
from p4torch.testing import check_bijection


def _complex(features: int) -> Callable[[torch.Generator], Tensor]:
    """Complex points."""
    return lambda generator: torch.randn(5, features, generator=generator, dtype=torch.complex128)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijection(name: str) -> None:
    factory, features = BIJECTIONS[name]
    check_bijection(factory, features, sample=_complex(features) if "complex" in name else None, compile=False)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_bijection(name: str) -> None:
    check_bijection(*CONDITIONAL[name], compile=False)


@pytest.mark.parametrize("name", ["coupling", "spline coupling", "linear, rank 1", "chain"])
def test_conditional_ones_compile_without_a_graph_break(name: str) -> None:
    check_bijection(*CONDITIONAL[name], compile=True)


@pytest.mark.parametrize(
    "name",
    ["coupling", "linear, no bias, rank 2", "linear, exponential, reversed", "mlp", "swap", "circulant", "triangular"],
)
def test_compiles_without_a_graph_break(name: str) -> None:
    factory, features = BIJECTIONS[name]
    check_bijection(factory, features, compile=True)


class _WrongLogDeterminant(BentIdentity):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, logabsdet = super().forward(x)
        return z, logabsdet + 1e-6


class _WrongInverse(Swap):
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, z.new_zeros(())


class _DeadParameter(BentIdentity):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class _Forgetful(InvertibleLinear):
    """Does not save its permutation."""

    def __init__(self) -> None:
        super().__init__(4)
        self.order = torch.randperm(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x[..., self.order])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, logabsdet = super().inverse(z)
        return x[..., self.order.argsort()], logabsdet


@pytest.mark.parametrize(
    ("broken", "features", "message"),
    [
        (_WrongLogDeterminant, 3, "log-determinant"),
        (lambda: _WrongInverse(5), 5, "round trip"),
        (_DeadParameter, 3, "gradient"),
        (_Forgetful, 4, "save and load"),
    ],
)
def test_the_check_finds(broken: type[Bijection], features: int, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_bijection(broken, features, compile=False)


def test_coupling_has_the_papers_number_of_parameters() -> None:
    def count(module: nn.Module) -> int:
        return sum(value.numel() for value in module.parameters() if value.requires_grad)

    assert count(AffineCoupling(60)) == 14_701
    assert count(Chain([AffineCoupling(60) for _ in range(50)])) == 735_050
    assert count(Chain([InvertibleLinear(60, rank=1) for _ in range(50)])) == 9_000


def test_swap_of_an_odd_number_of_features_and_its_inverse() -> None:
    x = torch.arange(5.0)
    assert Swap(5)(x)[0].tolist() == [3, 4, 0, 1, 2]
    assert torch.equal(Swap(5).inverse(Swap(5)(x)[0])[0], x)


def test_bent_identity_values_and_slopes() -> None:
    x = torch.linspace(-50, 50, 1001, dtype=torch.float64, requires_grad=True)
    y, logabsdet = BentIdentity()(x.unsqueeze(-1))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert float(BentIdentity()(torch.zeros(1))[0]) == 0
    assert slope.min() > 0.5
    assert slope.max() < 1.5
    torch.testing.assert_close(logabsdet, slope.log())


def test_constant_log_determinants_stay_scalars() -> None:
    x = torch.randn(7, 4)
    assert InvertibleLinear(4)(x)[1].shape == ()
    assert Chain([InvertibleLinear(4), Swap(4), Inverse(InvertibleLinear(4))])(x)[1].shape == ()


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: InvertibleLinear(0), "features"),
        (lambda: Swap(1), "features"),
        (lambda: AffineCoupling(4, hidden=(0,)), "hidden"),
        (lambda: InvertibleMLP(2, depth=0), "depth"),
        (lambda: InvertibleLinear(3, init="nothing"), "init"),  # type: ignore[arg-type]
        (lambda: InvertibleLinear(3, init=torch.eye(2)), "init"),
        (lambda: InvertibleLinear(3, init=torch.zeros(3, 3)), "base"),
        (lambda: InvertibleMLP(2, depth=3, init=torch.eye(2).repeat(2, 1, 1)), "init"),
        (lambda: InvertibleLinear(3, rank=0), "rank"),
        (lambda: InvertibleLinear(3)(torch.zeros(2, 4)), "x"),
    ],
)
def test_bad_input_names_the_argument(make: object, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("name", [name for name in BIJECTIONS if "circulant" not in name])  # torch has no FFT of none
def test_no_points_at_all(name: str) -> None:
    factory, features = BIJECTIONS[name]
    x = torch.zeros(0, features, dtype=torch.complex128 if "complex" in name else torch.float64)
    bijection = factory() if x.is_complex() else factory().double()
    z, _ = bijection(x)
    assert z.shape == bijection.inverse(z)[0].shape == x.shape
