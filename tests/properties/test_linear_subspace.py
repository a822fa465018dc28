"""Linear subspaces: what each kind moves by, its closed forms and fast paths, and what is refused."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import p4torch as p4
from p4torch import linalg
from p4torch.properties._math import diagonals, groups
from p4torch.properties._subspaces import (
    Circulant,
    Equivariant,
    Intertwining,
    Masked,
    Symmetric,
    Toeplitz,
    circulant,
    toeplitz,
)

#: A few products and small solves in float64.
EXACT = 1e-10
#: The same in float32, for matrices of entries of about 1.
SINGLE = 1e-4


def permutations(degree: int, fixed: int = 0) -> Tensor:
    """The symmetric group on so many features, beside so many that stay. `(degree!, n, n)`."""
    orders = [[*order, *range(degree, degree + fixed)] for order in itertools.permutations(range(degree))]
    return torch.eye(degree + fixed)[torch.tensor(orders)]


MASK = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.5

KINDS: dict[str, tuple[type[p4.Perturbation], dict[str, Any]]] = {
    "symmetric": (Symmetric, {"kind": "symmetric"}),
    "skew": (Symmetric, {"kind": "skew"}),
    "circulant": (Circulant, {"kind": "circulant"}),
    "toeplitz": (Toeplitz, {"kind": "toeplitz"}),
    "lower": (Masked, {"kind": "lower"}),
    "upper": (Masked, {"kind": "upper"}),
    "mask": (Masked, {"mask": MASK}),
    "group": (Equivariant, {"group": permutations(3, 3)}),
    "generators": (Intertwining, {"generators": permutations(3, 3)[1:]}),
}


def made(base: Tensor, size: float = 0.3, **options: Any) -> Any:
    """A perturbation whose base is the projection of the tensor given, in place, away from B₀."""
    perturbation = p4.LinearSubspace(base, **options)
    base.copy_(perturbation.project(base))
    with torch.no_grad():
        for _, value in perturbation.own_parameters():
            value.add_(torch.randn(value.shape), alpha=size)
    return perturbation


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


# --- the sets and their perturbations -------------------------------------------------------------------------------


def test_each_kind_moves_by_its_formula() -> None:
    for name, (kind, options) in KINDS.items():
        base = drawn(6, 6)
        scale = {} if kind in (Circulant, Toeplitz) else {"scale": 1.0}
        perturbation = made(base, **options, **scale)
        assert isinstance(perturbation, p4.LinearSubspace) and type(perturbation) is kind
        change = perturbation(base) - base
        if kind in (Circulant, Toeplitz):
            labels = (
                diagonals.circulant_labels if kind is Circulant else lambda n, at: diagonals.toeplitz_labels(n, n, at)
            )
            expected = perturbation.a[labels(6, base.device)]
        elif kind is Intertwining:
            products = drawn(20, 6, 6)  # their means over the group span S
            means = torch.stack([g @ products @ g.mT for g in permutations(3, 3).double()]).mean(0).flatten(1)
            expected = (change.flatten() @ torch.linalg.pinv(means) @ means).reshape(6, 6)
            assert float(change.detach().norm()) > EXACT
        else:
            product = perturbation.u @ perturbation.v.mT
            if kind is Symmetric:
                expected = product + product.mT if name == "symmetric" else product - product.mT
            elif kind is Masked:
                mask = {"lower": torch.ones(6, 6).tril(), "upper": torch.ones(6, 6).triu(), "mask": MASK}[name]
                expected = product * mask
            else:
                expected = torch.stack([g @ product @ g.mT for g in options["group"].double()]).mean(0)
        torch.testing.assert_close(change, expected, rtol=0, atol=EXACT)
        assert float(perturbation.defect(perturbation(base))) <= EXACT


@pytest.mark.parametrize("name", KINDS)
def test_a_plain_layer_is_projected_and_an_element_kept(name: str) -> None:
    layer = nn.Linear(6, 6)
    weight = layer.weight.detach().clone()
    with pytest.warns(p4.ProjectionWarning, match=r"defect 0\.\d+"):
        p4.perturb(layer, "weight", p4.LinearSubspace, **KINDS[name][1])
    site = next(p4.sites(layer))
    distance = (layer.weight.detach() - weight).norm() / weight.norm()
    torch.testing.assert_close(site.perturbation.defect(weight), distance.double(), rtol=SINGLE, atol=0)
    if name != "group":  # the nearest element
        for other in (1.01, 0.99):
            assert (other * layer.weight.detach() - weight).norm() > (layer.weight.detach() - weight).norm()
    kept = p4.finalize(layer).weight.detach().clone()
    again = p4.perturb(layer, "weight", p4.LinearSubspace, **KINDS[name][1])
    assert torch.equal(again.weight, kept)
    p4.finalize(again)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_train_merge_and_stay_in_the_set(name: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 6).to(dtype)
    with pytest.warns(p4.ProjectionWarning):
        p4.perturb(layer, "weight", p4.LinearSubspace, **KINDS[name][1])
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=2)
    for _ in range(7):
        optimizer.zero_grad()
        layer(drawn(4, 6, dtype=dtype)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    site, *biases = p4.sites(layer)
    eps = torch.finfo(dtype).eps
    assert scheduler.merged == 3 * (1 + len(biases)) and len(biases) == (name in ("group", "generators"))
    assert float(site.perturbation.defect(site.base)) <= eps
    assert float(site.perturbation.defect(layer.weight)) <= 8 * eps


@pytest.mark.parametrize("name", KINDS)
def test_copies_and_pickles(name: str) -> None:
    base = drawn(6, 6)
    perturbation = made(base, **KINDS[name][1])
    file = io.BytesIO()
    torch.save(perturbation, file)
    file.seek(0)
    for reference in (copy.deepcopy(perturbation), torch.load(file, weights_only=False)):
        assert type(reference) is type(perturbation)
        assert torch.equal(reference(base), perturbation(base))


def test_a_base_of_zeros_is_in_every_subspace() -> None:
    for _, options in KINDS.values():
        base = torch.zeros(6, 6)
        assert float(p4.LinearSubspace(base, **options).defect(base)) == 0


def test_autocast() -> None:
    for name, (_, options) in KINDS.items():
        base, x = drawn(6, 6, dtype=torch.float32), drawn(4, 6, dtype=torch.float32)
        perturbation = made(base, **options)
        expected = x @ perturbation(base).mT
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = perturbation.affine(base, x, None)
        coarse = 0.1 * float(expected.detach().abs().max())
        torch.testing.assert_close(got.float(), expected, rtol=0, atol=coarse, msg=name)


# --- circulant and Toeplitz -----------------------------------------------------------------------------------------


@given(rows=st.integers(1, 7), columns=st.integers(1, 7), batch=st.sampled_from([(), (2,)]), seed=st.integers(0, 2**31))
def test_diagonals_make_matrices_and_back(rows: int, columns: int, batch: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    lines, column = drawn(*batch, rows + columns - 1), drawn(*batch, rows)
    for matrix, coordinates, labels in (
        (diagonals.toeplitz(lines, rows), lines, diagonals.toeplitz_labels(rows, columns, lines.device)),
        (diagonals.circulant(column), column, diagonals.circulant_labels(rows, column.device)),
    ):
        assert torch.equal(matrix, coordinates[..., labels])
        assert torch.equal(diagonals.label_means(matrix, labels), coordinates)
        noisy = matrix + torch.randn_like(matrix)
        means = diagonals.label_means(noisy, labels)
        for label in range(coordinates.shape[-1]):
            expected = noisy[..., labels == label].mean(-1)
            torch.testing.assert_close(means[..., label], expected, rtol=0, atol=EXACT)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_products_by_fft(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    lines, x = drawn(2, 1, rows + columns - 1), drawn(2, 3, columns)
    expected = x @ diagonals.toeplitz(lines.squeeze(-2), rows).mT
    torch.testing.assert_close(diagonals.toeplitz_rows(x, lines, rows), expected, rtol=0, atol=EXACT)
    column = drawn(columns)
    expected = x @ diagonals.circulant(column).mT
    torch.testing.assert_close(diagonals.circulant_rows(x, torch.fft.rfft(column)), expected, rtol=0, atol=EXACT)


def test_lengths_of_transforms() -> None:
    assert [diagonals.next_fast_length(size) for size in (1, 7, 11, 31, 1023)] == [1, 8, 12, 32, 1024]


@pytest.mark.parametrize("kind", ["circulant", "toeplitz"])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("size", [4, 11])
def test_large_layers_take_the_fast_path(
    kind: str, batch: tuple[int, ...], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its gradients, against the matrix itself."""
    monkeypatch.setattr(circulant, "FFT_SIZE", 8)
    monkeypatch.setattr(toeplitz, "FFT_SIZE", 16)
    base = drawn(*batch, size, size if kind == "circulant" else size - 1)
    perturbation = made(base, kind=kind)
    x, bias = drawn(*batch, 3, base.shape[-1]).requires_grad_(), drawn(size).requires_grad_()
    got, expected = perturbation.affine(base, x, bias), x @ perturbation(base).mT + bias
    assert ("irfft" in _names(got)) is (size > 4)
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)
    inputs = (x, bias, perturbation.a)
    target = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad((got * target).sum(), inputs),
        torch.autograd.grad((expected * target).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=EXACT)


def _names(tensor: Tensor) -> str:
    """Of the nodes behind a tensor, two of them deep."""
    nodes = [tensor.grad_fn]
    for _ in range(6):
        nodes += [parent for node in nodes for parent, _ in (node.next_functions if node else ()) if parent]
        nodes = list(dict.fromkeys(nodes))
    return "irfft" if any("FftC2R" in node.name() for node in nodes if node) else ""


@pytest.mark.parametrize("size", [1, 2, 5, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_circulant_matrices_are_inverted_by_fft(size: int, dtype: torch.dtype, sign: int) -> None:
    base = sign * (2 * torch.eye(size) + 0.1 * torch.randn(2, size, size)).to(dtype)
    perturbation = made(base, 0.1, kind="circulant")
    exact = perturbation(base).detach().double()
    tolerance = SINGLE if dtype == torch.float32 else EXACT
    signs, logarithms = torch.linalg.slogdet(exact)
    y = drawn(2, 3, size, dtype=dtype)
    for got, expected in (
        (perturbation.inverse(base), torch.linalg.inv(exact)),
        (perturbation.solve(base, y), linalg.solve_rows(exact, y.double())),
        (perturbation.logabsdet(base), logarithms),
        (perturbation.sign(base), signs),
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got.detach().double(), expected, rtol=0, atol=tolerance)


def test_half_a_ring_counts_in_the_sign() -> None:
    """A cyclic shift of 4 is an odd permutation: its determinant is -1, from the eigenvalue at half the ring."""
    base = torch.eye(4).roll(1, 0)
    perturbation = p4.LinearSubspace(base, "circulant")
    assert perturbation.sign(base) == -1 and perturbation.logabsdet(base) == 0


# --- triangular -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "lower"},
        {"kind": "upper"},
        {"mask": torch.eye(5, dtype=torch.bool)},
        {"mask": torch.ones(5, 5).tril() > 0},
    ],
    ids=["lower", "upper", "diagonal", "mask"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triangular_matrices_are_inverted_by_substitution(options: dict[str, Any], dtype: torch.dtype) -> None:
    base = (torch.diag(torch.tensor([1.0, -2.0, 3.0, 1.0, 2.0])) + 0.1 * torch.randn(2, 5, 5)).to(dtype)
    perturbation = made(base, 0.1, **options)
    assert perturbation.upper is not None
    exact = perturbation(base).detach().double()
    tolerance = SINGLE if dtype == torch.float32 else EXACT
    signs, logarithms = torch.linalg.slogdet(exact)
    y = drawn(2, 3, 5, dtype=dtype)
    for got, expected in (
        (perturbation.inverse(base), torch.linalg.inv(exact)),
        (perturbation.solve(base, y), linalg.solve_rows(exact, y.double())),
        (perturbation.logabsdet(base), logarithms),
        (perturbation.sign(base), signs),
    ):
        torch.testing.assert_close(got.detach().double(), expected, rtol=0, atol=tolerance)
    single = p4.LinearSubspace(base[0].clone(), **options)
    torch.testing.assert_close(single.solve(base[0], y[0, 0]), single.solve(base[0], y[0])[0], rtol=0, atol=tolerance)


def test_only_square_matrices_have_an_inverse() -> None:
    base = torch.ones(4, 6).tril()
    perturbation = p4.LinearSubspace(base, "lower")
    for call in (lambda: perturbation.solve(base, base), lambda: perturbation.logabsdet(base)):
        with pytest.raises(p4.ArgumentError, match="`base` must be square"):
            call()


# --- groups ---------------------------------------------------------------------------------------------------------


def test_layers_commute_with_the_group() -> None:
    """Also between two representations, and for one that is not orthogonal; in one with a trivial part of many."""
    basis = torch.eye(5, dtype=torch.float64) + 0.3 * drawn(5, 5)
    skewed = basis @ permutations(3, 2).double() @ torch.linalg.inv(basis)
    for left, right in ((permutations(3, 2), permutations(3)), (skewed, skewed), (permutations(3), skewed)):
        base = drawn(2, left.shape[-1], right.shape[-1])
        perturbation = made(base, group=(left, right), rank=2)
        weight = perturbation(base).detach()
        for one, other in zip(left.double(), right.double(), strict=True):
            torch.testing.assert_close(one @ weight, weight @ other, rtol=0, atol=EXACT)
        torch.testing.assert_close(perturbation.project(weight), weight, rtol=0, atol=EXACT)


@given(degree=st.integers(2, 4), batch=st.sampled_from([(), (2,)]), rank=st.integers(1, 2))
def test_permutations_act_by_their_order(degree: int, batch: tuple[int, ...], rank: int) -> None:
    group = permutations(degree).double()
    order, factor = groups.permutations_of(group), drawn(*batch, degree, rank)
    assert order is not None and groups.permutations_of(-group) is None
    expected = torch.cat([one @ factor for one in group], -1)
    for got in (groups.images(group, order, factor), groups.images(group, None, factor)):
        torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)


def test_a_list_with_repeats_counts_each_once() -> None:
    """Sign changes, as a representation in which permutations of the same sign look the same."""
    swap = torch.eye(4)[[1, 0, 2, 3]]
    repeated = p4.LinearSubspace(torch.eye(4), group=[torch.eye(4), swap, torch.eye(4)])
    matrix = drawn(4, 4)
    expected = (matrix + swap.double() @ matrix @ swap.double()) / 2
    assert len(repeated.left) == 2
    torch.testing.assert_close(repeated.double().project(matrix), expected, rtol=0, atol=EXACT)


def test_groups_of_integers_and_of_rounded_matrices() -> None:
    p4.LinearSubspace(torch.eye(3), group=permutations(3).long())
    turn = torch.linalg.matrix_exp(2 * torch.pi / 7 * torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    powers = [torch.linalg.matrix_power(turn, index) for index in range(7)]
    assert len(p4.LinearSubspace(torch.eye(2), group=powers).left) == 7


@pytest.mark.parametrize(
    ("group", "directions", "rank"),
    [
        (permutations(4), 2, 1),  # all of S
        (permutations(3, 2), 5, 2),  # rank one: 3 of the trivial part, 1 of the other
        (permutations(2, 3), 5, 1),
    ],
)
def test_the_rank_is_as_high_as_it_takes(group: Tensor, directions: int, rank: int) -> None:
    size = group.shape[-1]
    base = torch.eye(size, dtype=torch.float64)
    perturbation = p4.LinearSubspace(base, group=group)
    jacobian = torch.autograd.functional.jacobian(
        lambda u: torch.func.functional_call(perturbation, {"u": u}, (base,)), perturbation.u.detach()
    )
    assert perturbation.rank == rank
    assert int(torch.linalg.matrix_rank(jacobian.reshape(size * size, -1))) >= directions
    left, right = groups.representations(group, size, size)
    commuting = groups.commutant_dimension(left, right)
    basis = torch.stack([groups.reynolds(drawn(size, size), left, right).flatten() for _ in range(size**2)])
    assert int(torch.linalg.matrix_rank(basis)) == commuting


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (torch.eye(3), r"`group` must be a tensor \(g, n, n\) or a list of matrices, got \(3, 3\)"),
        ([], r"`group` must be a tensor \(g, n, n\) or a list of matrices, got list"),
        (permutations(2), r"`group` must be of matrices \(3, 3\), to fit the base, got \(2, 2\)"),
        (torch.full((1, 3, 3), torch.nan), r"`group` must be real and finite"),
        ([torch.eye(3), torch.ones(3, 3)], "`group` must be of nonsingular matrices, got a singular one, number 1"),
        ([torch.eye(3), torch.zeros(3, 3)], "`group` must be of nonsingular matrices, got a singular one, number 1"),
        (permutations(3)[1:], "`group` must be a group, got 5 matrices without the identity"),
        (permutations(3)[:-1], "`group` must be closed under products, got numbers 1 and 4, whose product"),
        ([torch.eye(3), 2 * torch.eye(3)], "`group` must be closed under products, got numbers 1 and 1"),
        (
            (permutations(3), permutations(3)[:2]),
            "`group` must be two representations of as many elements, got 6 and 2",
        ),
        ((permutations(3), permutations(3).flip(0)), "`group` must be a group, got 6 matrices without the identity"),
        ((permutations(3), permutations(3)[[0, 1, 2, 4, 3, 5]]), "`group` must be closed under products"),
    ],
)
def test_what_is_no_group(group: Any, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.LinearSubspace(torch.eye(3), group=group)


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(p4.ArgumentError, match="pair of representations of 3 outputs and 2 inputs"):
        p4.LinearSubspace(torch.ones(3, 2), group=permutations(3))
    signs = torch.tensor([1.0, -1.0]).reshape(2, 1, 1)
    with pytest.raises(p4.ArgumentError, match="`group` must be one that some matrix but 0 commutes with"):
        p4.LinearSubspace(torch.ones(1, 1), group=(signs, signs.abs()))


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "representation` must be given, exactly one of them, or generators and algebra, got none"),
        ({"kind": "lower", "mask": MASK}, "exactly one of them, or generators and algebra, got kind and mask"),
        (
            {"mask": MASK, "group": permutations(3, 3)},
            "exactly one of them, or generators and algebra, got mask and group",
        ),
        (
            {"kind": "hermitian"},
            "`kind` must be one of circulant, lower, upper, symmetric, skew, toeplitz, got 'hermitian'",
        ),
        ({"kind": "mask"}, "`kind` must be one of"),
        ({"kind": "circulant", "rank": 2}, "`rank` must be left out for circulant, whose coordinates train"),
        ({"kind": "toeplitz", "scale": 2.0}, "`scale` must be left out for toeplitz"),
        ({"kind": "circulant", "directions": "gradient"}, "`directions` must be left out for circulant"),
        ({"kind": "symmetric", "rank": 0}, "`rank` must be an integer >= 1"),
        ({"mask": torch.ones(6, 6)}, r"`mask` must be a boolean tensor, got torch\.float32"),
        ({"mask": MASK[:5]}, r"`mask` must be of shape \(6, 6\), as a matrix of the base, got \(5, 6\)"),
        ({"mask": MASK & ~MASK}, "`mask` must be true somewhere"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.LinearSubspace(torch.eye(6), **options)


@pytest.mark.parametrize("kind", ["symmetric", "skew", "circulant"])
def test_rectangular_bases(kind: str) -> None:
    with pytest.raises(p4.ArgumentError, match=rf"`base` must be square, .* for a {kind} matrix, got \(3, 4\)"):
        p4.LinearSubspace(torch.ones(3, 4), kind)
    with pytest.raises(p4.ArgumentError, match="`base` must be real"):
        p4.LinearSubspace(torch.eye(3, dtype=torch.complex64), kind)


# --- gradient directions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["symmetric", "skew", "lower", "mask", "group"])
def test_gradient_directions_see_the_gradient_inside_the_subspace(name: str) -> None:
    base = drawn(6, 6)
    perturbation = made(base, directions="gradient", rank=2, **KINDS[name][1])
    perturbation.start_sketch(torch.Generator().manual_seed(3))
    sketch: Any = perturbation.sketch
    x, target = drawn(20, 6), drawn(20, 6)
    (perturbation.matmul(base, x) * target).sum().backward()
    gradient = perturbation.project(target.mT @ x)
    expected = linalg.orthonormal(gradient.mT @ (gradient @ sketch.probe))
    torch.testing.assert_close(sketch.directions(), expected, rtol=0, atol=EXACT)
