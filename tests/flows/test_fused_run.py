"""A fused run of couplings, linear layers and swaps against its reference, and in a chain."""

import copy

import pytest
import torch
from tests.flows.bijections import randomized
from torch import Tensor, nn

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, BentIdentity, Bijection, Chain, InvertibleLinear, Swap
from p4torch.flows._fused.run import Plan, Step, fusable, run_reference

#: float64 rounding through up to six layers, relative to the largest entry.
TOLERANCE = 1e-11

#: float32 rounding through six layers against float64.
SINGLE = 1e-4


def _bijections(features: int, hidden: tuple[int, ...], kinds: str, rank: int = 1) -> Chain:
    """c: coupling, s: swap, l: linear, n: linear without bias; all parameters are moved from where they start."""
    make = {
        "c": lambda: AffineCoupling(features, hidden),
        "s": lambda: Swap(features),
        "l": lambda: InvertibleLinear(features, rank=rank, init="orthogonal"),
        "t": lambda: InvertibleLinear(features, init="orthogonal"),
        "u": lambda: InvertibleLinear(features, bias=False, init="reverse"),
        "n": lambda: InvertibleLinear(features, bias=False, rank=rank, init="reverse"),
        "b": BentIdentity,
    }
    return randomized(Chain([make[kind]() for kind in kinds]).double(), 0.3)


def _one_by_one(chain: Chain, x: Tensor) -> tuple[Tensor, Tensor]:
    total = x.new_zeros(())
    for bijection in chain.bijections:
        x, logabsdet = bijection(x)
        total = total + logabsdet
    return x, total


def _back_one_by_one(chain: Chain, z: Tensor) -> tuple[Tensor, Tensor]:
    total = z.new_zeros(())
    for bijection in reversed(chain.bijections):
        z, logabsdet = bijection.inverse(z)
        total = total + logabsdet
    return z, total


def _trainable(chain: nn.Module) -> list[Tensor]:
    return [value for value in chain.parameters() if value.requires_grad]


def _close(left: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> None:
    scale = 1 + float(right.detach().abs().max())
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("hidden", [(), (4,), (5, 4), (3, 3, 3)])
@pytest.mark.parametrize(
    ("features", "kinds"),
    [
        (5, "c"),
        (5, "cc"),
        (6, "cs"),
        (6, "sccscs"),
        (6, "clcn"),
        (5, "lcl"),
        (6, "lsc"),
        (6, "cbcs"),
        (2, "csc"),
        (6, "ctcu"),
        (5, "tctbc"),
    ],
)
@pytest.mark.parametrize("inverse", [False, True])
def test_values_and_gradients(features: int, kinds: str, hidden: tuple[int, ...], inverse: bool) -> None:
    chain = _bijections(features, hidden, kinds, rank=2 if "n" in kinds else 1)
    x = torch.randn(7, features, dtype=torch.float64, requires_grad=True)
    fused, plain = (chain.inverse(x), _back_one_by_one(chain, x)) if inverse else (chain(x), _one_by_one(chain, x))
    directions = [torch.randn_like(value) for value in plain]
    for left, right in zip(fused, plain, strict=True):
        _close(left, right)
    inputs = [x, *_trainable(chain)]
    for _ in range(2):  # the graph is retained: the buffers still hold what they held
        got = torch.autograd.grad(fused, inputs, directions, retain_graph=True)
        for left, right in zip(got, torch.autograd.grad(plain, inputs, directions, retain_graph=True), strict=True):
            _close(left, right)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_reference_agrees_with_the_layers(inverse: bool) -> None:
    chain = _bijections(6, (4,), "clscn")
    x = torch.randn(7, 6, dtype=torch.float64)
    members = list(reversed(chain.bijections)) if inverse else list(chain.bijections)
    steps = [bijection.step(inverse) for bijection in members]  # type: ignore[operator]
    plan: Plan = tuple((step.kind, len(step.tensors)) for step in steps)
    z, total = run_reference(plan, x, *(value for step in steps for value in step.tensors))
    expected, logabsdet = (_back_one_by_one if inverse else _one_by_one)(chain, x)
    _close(z, expected)
    _close(total + sum(step.logabsdet for step in steps if step.logabsdet is not None), logabsdet)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kinds", ["csl", "cst"])
def test_first_and_second_derivatives(kinds: str, inverse: bool) -> None:
    chain = _bijections(4, (3,), kinds)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    tensors = _trainable(chain)

    def run(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return chain.inverse(x) if inverse else chain(x)

    assert torch.autograd.gradcheck(run, (x, *tensors))
    assert torch.autograd.gradgradcheck(run, (x, *tensors))


@pytest.mark.parametrize("create_graph", [False, True])
def test_some_tensors_are_frozen(create_graph: bool) -> None:
    chain = _bijections(4, (3,), "csl")
    chain.bijections[0].log_alpha.requires_grad_(False)
    x = torch.randn(3, 4, dtype=torch.float64)
    inputs = _trainable(chain)
    outputs = [sum(value.sum() for value in run(x)) for run in (chain, lambda x: _one_by_one(chain, x))]
    got, expected = (torch.autograd.grad(value, inputs, create_graph=create_graph) for value in outputs)
    for left, right in zip(got, expected, strict=True):
        _close(left, right)


def test_graphs_alive_at_once_share_nothing() -> None:
    chain = _bijections(4, (3,), "cscl")
    points = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = [torch.autograd.grad(chain(x)[0].sum(), x)[0] for x in points]
    outputs = [chain(x)[0] for x in points]
    kept = [value.detach().clone() for value in outputs]
    for x, output, gradient in zip(points, outputs, expected, strict=True):
        assert torch.equal(torch.autograd.grad(output.sum(), x)[0], gradient)
    del output
    chain(points[0].detach() + 1)
    for value, before in zip(outputs, kept, strict=True):
        assert torch.equal(value, before)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_singular_layer_is_no_error(rank: int) -> None:
    chain = Chain([AffineCoupling(4, (3,)), InvertibleLinear(4, rank=rank, scale=1.0)])
    perturbation = chain.bijections[1].parametrizations.weight[0]  # type: ignore[union-attr, index]
    with torch.no_grad():
        for factor, value in ((perturbation.u, -1.0), (perturbation.v, 1.0)):
            factor.zero_()[0, 0] = value
    z, total = chain(torch.randn(3, 4))
    assert bool((total == -torch.inf).all())
    (z.sum() + total.sum()).backward()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kinds", ["cslcsl", "cstcst"])
def test_float32_against_float64(kinds: str, inverse: bool) -> None:
    exact = _bijections(6, (8, 8), kinds)
    single = copy.deepcopy(exact).float()
    x = torch.randn(20, 6, dtype=torch.float64)
    mapped = []
    for chain, points in ((exact, x), (single, x.float())):
        z, total = chain.inverse(points) if inverse else chain(points)
        (z.square().sum() + total.sum()).backward()
        mapped.append(z.double())
    _close(mapped[1], mapped[0], SINGLE)
    for left, right in zip(_trainable(single), _trainable(exact), strict=True):
        assert left.grad is not None
        assert right.grad is not None
        _close(left.grad.double(), right.grad, SINGLE)


def test_leading_shapes_and_layouts() -> None:
    chain = _bijections(6, (4,), "csl")
    x = torch.randn(8, 6, dtype=torch.float64)
    z, total = chain(x)
    stacked, stacked_total = chain(x.reshape(2, 4, 6))
    assert torch.equal(stacked.reshape(8, 6), z)
    assert torch.equal(stacked_total.reshape(8), total)
    assert torch.equal(chain(x.mT.contiguous().mT)[0], z)
    single, single_total = chain(x[0])
    _close(single, z[0])
    assert single_total.shape == ()


def test_torch_func_takes_the_layers_one_by_one() -> None:
    chain = _bijections(4, (3,), "csl")
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = chain(x)[1]
    jacobians = torch.func.vmap(torch.func.jacrev(lambda point: chain(point)[0]))(x)
    _close(torch.linalg.slogdet(jacobians)[1], expected)


def test_what_is_not_fused() -> None:
    x = torch.randn(3, 4)
    coupling, swap, linear = AffineCoupling(4, (3,)), Swap(4), InvertibleLinear(4, rank=1)
    steps = [one.step() for one in (coupling, swap, linear)]
    assert all(isinstance(step, Step) for step in steps)
    assert fusable(steps, x)  # type: ignore[arg-type]
    assert not fusable(steps[1:], x)  # type: ignore[arg-type]
    assert not fusable(steps, x.double())  # type: ignore[arg-type]
    assert not fusable(steps, x[:0])  # type: ignore[arg-type]

    class Mine(AffineCoupling):
        pass

    unknown: list[Bijection] = [
        Mine(4),
        Swap(5),
        AffineCoupling(4, activation=nn.Tanh),
        BentIdentity(),
        InvertibleLinear(4, rank=1, form="exponential"),
        InvertibleLinear(4, block=2),
    ]
    assert [one.step() for one in unknown] == [None] * len(unknown)
    with pytest.raises(ArgumentError, match="`x` must be of shape"):
        Chain([coupling])(torch.randn(3, 6))


def test_hooks_are_called() -> None:
    chain, calls = Chain([AffineCoupling(4, (3,)), Swap(4)]), []
    chain.bijections[0].register_forward_hook(lambda *_: calls.append(1))
    chain(torch.randn(3, 4))
    assert calls == [1]


def test_a_run_is_one_node() -> None:
    z, _ = Chain([AffineCoupling(4, (3,)), Swap(4), AffineCoupling(4, (3,))])(torch.randn(3, 4))
    assert "FusedRun" in type(z.grad_fn).__name__ + type(z.grad_fn.next_functions[0][0]).__name__  # type: ignore[union-attr]


def test_couplings_of_different_widths_are_not_one_run() -> None:
    steps = [AffineCoupling(4, hidden).step() for hidden in ((3,), (5,))]
    assert not fusable(steps, torch.randn(3, 4))  # type: ignore[arg-type]


def _agrees(chain: Chain, x: Tensor) -> None:
    """The run sees what the layers are now."""
    inputs = _trainable(chain)
    outputs = chain(x), _one_by_one(chain, x)
    for left, right in zip(*outputs, strict=True):
        _close(left, right)
    got, expected = (torch.autograd.grad(z.sum() + total.sum(), inputs) for z, total in outputs)
    for left, right in zip(got, expected, strict=True):
        _close(left, right)


def test_what_changes_between_steps() -> None:
    chain = _bijections(6, (4,), "clscl", rank=2)
    x = torch.randn(7, 6, dtype=torch.float64)
    _agrees(chain, x)
    reference, state = copy.deepcopy(chain), copy.deepcopy(chain.state_dict())
    with torch.no_grad():
        for value in _trainable(reference):
            value.add_(0.1)
    _agrees(reference, x)
    _close(chain(x)[0], _one_by_one(chain, x)[0])
    assert not torch.equal(reference(x)[0], chain(x)[0])

    p4.merge(chain, force=True)
    _agrees(chain, x)
    chain.load_state_dict(state)
    _agrees(chain, x)
    coupling, linear = chain.bijections[0], chain.bijections[1]
    coupling.log_alpha = nn.Parameter(coupling.log_alpha.detach() + 0.5)  # type: ignore[operator]
    coupling.nets.weights[0] = nn.Parameter(torch.randn_like(coupling.nets.weights[0]))  # type: ignore[union-attr, index]
    linear.bias.data = linear.bias.data + 1  # type: ignore[union-attr, operator]
    _agrees(chain, x)
    chain.bijections[2] = InvertibleLinear(6, rank=2, init="orthogonal").double()
    _agrees(chain, x)
    chain.float().double()
    _agrees(chain, x)
    p4.finalize(chain)
    _agrees(chain, x)
    for bijection in chain.bijections:
        if isinstance(bijection, InvertibleLinear):
            p4.perturb(bijection, "weight", p4.Invertible, rank=1)
    _agrees(chain, x)
