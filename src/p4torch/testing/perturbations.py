"""One check for every perturbation, ours or yours: does it keep the promises that the engine builds on?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.perturbation import Perturbation
from p4torch.parametrize.sites import Site, sites
from p4torch.properties import Invertible
from p4torch.testing._cases import (
    EVERY,
    Case,
    Factory,
    Run,
    Sample,
    default_sample,
    doubled,
    function_of_b,
    move,
    overridden,
    parameters_of,
    require,
    require_close,
    require_equal,
    weight_of,
)

#: Machine epsilons by which two orders of the same few products may differ, relative to the largest number in them.
ROUNDING = 100
#: Machine epsilons of defect after a walk: each of about 1,000 steps may leave one rounding.
DRIFT = 1000
#: Half a walk and a whole one for saving and loading: both end in the middle of an interval.
PAUSE, END = 13, 36


def check_perturbation(
    factory: Factory,
    *,
    shape: tuple[int, ...] = (6, 6),
    sample: Sample | None = None,
    tangent: int | None = None,
    steps: int = 1000,
    batch: bool = True,
    compile: bool | str = True,
    seed: int = 0,
) -> None:
    """Run every check on a perturbation.

    Identity at B₀; not stationary there; gradients reach all of B and nothing else; a merge leaves the effective
    weight unchanged and is refused whole for a non-finite B; the defect stays 0 along a walk of noisy optimizer
    steps with merges; `matmul`, `solve`, `inverse`, `logabsdet` and `sign`, where they are overridden, agree with
    LAPACK in float64; a stack equals its elements; copies are independent; a run that is saved and loaded in the
    middle of an interval goes on bit by bit; first and second derivatives are right; the forward compiles without a
    graph break. All in float32 and float64. The global random state is left as it was.

        >>> import p4torch as p4
        >>> from p4torch.testing import check_perturbation
        >>> check_perturbation(lambda base: p4.Invertible(base, rank=2), shape=(4, 4), steps=100, compile=False)

    Args:
        factory: makes the perturbation from a base tensor.
        shape: of one element of S.
        sample: draws an element of S from a generator, in float64. By default a random tensor (I + noise, if square)
            is admitted by the perturbation itself, which projects it where it must.
        tangent: least number of independent real directions in which B moves R_B(A) at B₀; n for matrices `(..., n)`.
        steps: length of the walk.
        batch: whether to check leading batch dimensions.
        compile: whether to compile; True only looks for graph breaks (backend "aot_eager"), or name a backend.
        seed: of everything random.

    Raises:
        AssertionError: a check failed; the message starts with its name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        exact = Case(factory, sample or default_sample(factory, shape), torch.float64, seed)
        for case in (exact, replace(exact, dtype=torch.float32)):
            _run("identity", _check_identity, case)
            _run("gradients", _check_gradients, case)
            _run("merge", _check_merge, case)
            _run("non-finite B", _check_nonfinite, case)
            _run("walk", _check_walk, case, steps)
            _run("tracked", _check_tracked, case)
            _run("together", _check_together, case)
            _run("deepcopy", _check_copy, case)
            _run("save and load", _check_resume, case)
            if batch:
                _run("batch", _check_batch, case)
        _run("tangent", _check_tangent, exact, tangent)
        _run("derivatives", _check_derivatives, exact)
        if compile:
            _run("compile", _check_compile, exact, compile if isinstance(compile, str) else "aot_eager")


def _run(name: str, check: Callable[..., None], *arguments: object) -> None:
    """Run a check; whatever goes wrong in it is a failed check and carries its name."""
    try:
        check(*arguments)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def _check_identity(case: Case) -> None:
    site = case.site()
    require_close("identity at B0", weight_of(site), site.base, ROUNDING * case.eps)
    move(site, case.generator())
    site.perturbation.reset(case.generator())
    require_close("identity after reset", weight_of(site), site.base, ROUNDING * case.eps)


def _check_gradients(case: Case) -> None:
    site = case.moved()
    weight = weight_of(site)
    noise = torch.randn(weight.shape, generator=case.generator(), dtype=weight.dtype)
    (weight * noise).abs().square().sum().backward()
    b = parameters_of(site)
    for name, value in b.items():
        reached = value.grad is not None and bool((value.grad != 0).any())
        require("gradients", reached, f"none reaches `{name}`")
    known = {id(value) for value in b.values()}
    for name, value in site.module.named_parameters():
        require("gradients", id(value) in known or not value.requires_grad, f"`{name}` would train, too")


def _check_merge(case: Case) -> None:
    site = case.moved()
    expected = weight_of(site).detach()
    if bool((site.perturbation.defect(expected) > case.eps**0.5).any()):
        expected = site.perturbation.project(expected)
    report = site.merge(force=True)
    require("merge", report.ok, f"refused: {report.reason}")
    require_close("merge: effective weight", weight_of(site), expected, ROUNDING * case.eps)
    require_close("merge: identity at B0", weight_of(site), site.base, ROUNDING * case.eps)


def _check_nonfinite(case: Case) -> None:
    for name in parameters_of(case.site()):
        site = case.moved()
        with torch.no_grad():
            parameters_of(site)[name].fill_(torch.nan)
        before = site.base.clone()
        report = site.merge(force=True)
        require("non-finite B", report.merged == 0, f"merged although `{name}` was not finite")
        require_equal("non-finite B", {"base": site.base.detach()}, {"base": before.detach()})
        for other, value in parameters_of(site).items():
            require("non-finite B", bool(value.isfinite().all()), f"`{other}` was not reset")
        _compare_with_lapack("non-finite B", case, site)


def _check_walk(case: Case, steps: int) -> None:
    run = Run(case)
    run.walk(0, steps)
    run.site.merge(force=True)
    run.site.correct()
    require("walk", run.scheduler.merged > 0 or steps < EVERY, f"no merge in {steps} steps")
    defect = float(run.site.perturbation.defect(run.site.base).max())
    require("walk: defect", defect <= DRIFT * case.eps, f"{defect:.3g} after {steps} steps ({case.dtype})")
    _compare_with_lapack("walk", case, run.site)


def _check_tracked(case: Case) -> None:
    _compare_with_lapack("tracked at B0", case, case.site())
    _compare_with_lapack("tracked", case, case.moved())


def _compare_with_lapack(check: str, case: Case, site: Site) -> None:
    """Each overridden method against the general one in float64; an error grows with both condition numbers."""
    base = linalg.in_double(site.base.detach())
    exact = doubled(site.perturbation)
    for name, arguments in overridden(site):
        condition = 1.0
        if name != "matmul":
            condition = float(torch.linalg.cond(base).max() * torch.linalg.cond(exact(base).detach()).max())
        got = getattr(site.perturbation, name)(site.base, *arguments)
        expected = getattr(Perturbation, name)(exact, base, *(x.to(base.dtype) for x in arguments))
        require_close(f"{check}: {name}", got.to(expected.dtype), expected, ROUNDING * case.eps * condition)


def _check_together(case: Case) -> None:
    """What is computed together equals what is computed apart."""
    site = case.moved()
    known = dict(overridden(site))
    if "matmul" in known:
        (x,) = known["matmul"]
        bias = torch.linspace(-1, 1, site.base.shape[-2], dtype=torch.float64).to(site.base)
        expected = site.perturbation.matmul(site.base, x) + bias
        got = site.perturbation.affine(site.base, x, bias)
        require_close("together: affine", got, expected, ROUNDING * case.eps)
    if isinstance(site.perturbation, Invertible) and "solve" in known:
        (y,) = known["solve"]
        parts = site.perturbation.solve(site.base, y), site.perturbation.logabsdet(site.base)
        for got, expected in zip(site.perturbation.solve_logabsdet(site.base, y), parts, strict=True):
            require_close("together: solve_logabsdet", got, expected, ROUNDING * case.eps)


def _check_copy(case: Case) -> None:
    site = case.moved()
    weight_of(site).abs().sum().backward()
    reference = next(sites(copy.deepcopy(site.module)))
    before = {"weight": weight_of(site).detach()}
    require_equal("deepcopy", {"weight": weight_of(reference).detach()}, before)
    move(reference, case.generator())
    reference.merge(force=True)
    require_equal("deepcopy: the original", {"weight": weight_of(site).detach()}, before)


def _check_resume(case: Case) -> None:
    straight, resumed = Run(case), Run(case)
    straight.walk(0, PAUSE)
    resumed.load(straight.save())
    for run in (straight, resumed):
        run.walk(PAUSE, END)
    require_equal("save and load", resumed.site.module.state_dict(), straight.site.module.state_dict())


def _check_batch(case: Case) -> None:
    singles = [case.moved(index) for index in range(3)]
    stack = case.site_at(torch.stack([site.base.detach() for site in singles]))
    with torch.no_grad():
        for name, value in parameters_of(stack).items():
            value.copy_(torch.stack([parameters_of(site)[name] for site in singles]))
    for when in ("batch", "batch after a merge"):
        for name, arguments in [("forward", ()), *overridden(stack)]:
            got, *parts = (getattr(site.perturbation, name)(site.base, *arguments) for site in (stack, *singles))
            require_close(f"{when}: {name}", got, torch.stack(parts), ROUNDING * case.eps)
        reports = [site.merge(force=True) for site in (stack, *singles)]
        require(when, reports[0].merged == len(singles), f"{reports[0].merged} of {len(singles)} merged")


def _check_tangent(case: Case, tangent: int | None) -> None:
    site = case.site()
    least = site.base.shape[-1] if tangent is None else tangent
    values = tuple(value.detach() for value in parameters_of(site).values())
    blocks = torch.autograd.functional.jacobian(function_of_b(site), values)
    jacobian = [block.reshape(-1, value.numel()) for block, value in zip(blocks, values, strict=True)]
    real = [part for block in jacobian for part in ((block.real, block.imag) if block.is_complex() else (block,))]
    rank = int(torch.linalg.matrix_rank(torch.cat(real, -1)))
    require("tangent", rank >= least, f"B moves R_B(A) in {rank} directions at B0, not in {least}")


def _check_derivatives(case: Case) -> None:
    site = case.moved()
    values = tuple(value.detach().clone().requires_grad_() for value in parameters_of(site).values())
    for name, arguments in [("forward", ()), *overridden(site)]:
        if name != "sign":
            function = function_of_b(site, name, *arguments)
            if not function(*values).requires_grad:
                continue  # a constant
            torch.autograd.gradcheck(function, values)
            torch.autograd.gradgradcheck(function, values, fast_mode=True)


def _check_compile(case: Case, backend: str) -> None:
    torch.compiler.reset()
    site = case.moved()
    for name, arguments in [("forward", ()), *overridden(site)]:
        function: Callable[..., Tensor] = getattr(site.perturbation, name)
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        expected, got = function(site.base, *arguments), compiled(site.base, *arguments)
        require_close(f"compile: {name}", got, expected, ROUNDING * case.eps)
        if got.requires_grad:
            torch.autograd.grad(got.sum().real, list(parameters_of(site).values()))
