"""`p4torch doctor`: what is installed, what the machine has, and whether it works."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import typer

from p4torch import __version__

#: A requirement as packages state it: name, least version, extra.
REQUIREMENT = re.compile(r"^([\w.-]+).*?(?:>=\s*([\d.]+))?[^;]*(?:;.*extra\s*==\s*['\"]([\w-]+)['\"])?")
#: Extras that users install; the others are for whoever works on p4torch.
EXTRAS = ("experiments", "molecules", "lightning", "huggingface", "flows")
#: What rounding leaves of the inverse of a matrix of 16 rows, and of energies in kJ/mol, relative.
RESIDUAL, PARITY = 1e-4, 1e-6


def doctor() -> None:
    """Versions, extras, devices, threads, and a self-test of some seconds. Exit code 1 if a test fails.

    Example: `p4torch doctor`
    """
    typer.echo(f"p4torch {__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    for line in (*_extras(), *_devices(), *_threads()):
        typer.echo(line)
    failed = 0
    for name, test in TESTS.items():
        started = time.perf_counter()
        try:
            told = test()
        except Exception as error:  # whatever it is, the others are run, too
            failed, told = failed + 1, f"FAILED: {type(error).__name__}: {error}"
        typer.echo(f"self-test, {name}: {told} ({time.perf_counter() - started:.1f} s)")
    if failed:
        typer.echo(f"{failed} of {len(TESTS)} tests have failed", err=True)
        raise typer.Exit(1)
    typer.echo("All is well.")


def _extras() -> Iterator[str]:
    """A line for torch, and one for each extra."""
    yield _packages("torch", ["torch>=2.6"])
    stated: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    try:
        requirements = requires("p4torch") or []
    except PackageNotFoundError:
        yield "extras: unknown, as p4torch is not installed but found on the path"
        return
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        if match and match[3] in stated:
            stated[match[3]].append(requirement)
    for extra, wanted in stated.items():
        if wanted:
            yield _packages(f"extra {extra}", wanted)


def _packages(title: str, requirements: Sequence[str]) -> str:
    known, wrong = [], []
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        assert match is not None
        name, least = match[1], match[2] or "0"
        try:
            got = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        known.append(f"{name} {got}")
        if _numbers(got) < _numbers(least):
            wrong.append(f"{name} {got} is older than {least}")
    advice = f'; pip install "p4torch[{title.removeprefix("extra ")}]"' if wrong and title != "torch" else ""
    return f"{title}: {', '.join(known + wrong)}{advice}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def _devices() -> Iterator[str]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    names += ["MPS"] if torch.backends.mps.is_available() else []
    yield f"devices of torch: CPU{''.join(f', {name}' for name in names)}"
    if find_spec("openmm") is not None:
        import openmm

        platforms = [openmm.Platform.getPlatform(index).getName() for index in range(openmm.Platform.getNumPlatforms())]
        yield f"platforms of OpenMM: {', '.join(platforms)}"


def _threads() -> Iterator[str]:
    import torch

    from p4torch.runs.provenance import cores, cpu_model

    said = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    yield ", ".join([f"threads: {torch.get_num_threads()} of torch", f"{cores()} cores", cpu_model(), *said])


def _layer() -> str:
    """An orthogonal layer trains, merges, and stays orthogonal."""
    import torch

    import p4torch as p4

    layer = torch.nn.Linear(16, 16)
    torch.nn.init.orthogonal_(layer.weight)
    p4.perturb(layer, "weight", p4.Orthogonal)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.ones(4, 16)).square().sum().backward()
        optimizer.step()
        p4.merge(layer)
    weight = layer.weight.detach()
    defect = float((weight @ weight.T - torch.eye(16)).abs().max())
    return _below("defect", defect, RESIDUAL)


def _flow() -> str:
    """The inverse of a flow."""
    import torch

    from p4torch import flows

    layer, x = flows.InvertibleLinear(16), torch.randn(8, 16)
    z, _ = layer(x)
    return _below("error of the inverse", float((layer.inverse(z)[0] - x).detach().abs().max()), RESIDUAL)


def _energies() -> str:
    """Ours and OpenMM's."""
    missing = [name for name in ("jinja2", "mdtraj", "networkx", "openmm") if find_spec(name) is None]
    if missing:
        return f"left out, without {', '.join(missing)}"
    from p4torch.molecules import MolecularSystem, OpenMMEnergy

    system = MolecularSystem.alanine_dipeptide()
    ours, theirs = system.energy(system.positions) * system.kT, OpenMMEnergy(system.openmm_system, workers=0)
    exact = theirs.energy(system.positions)
    return _below("relative difference from OpenMM", float((ours / exact - 1).abs()), PARITY)


def _files() -> str:
    """Whether files can be written where runs go by default: the working directory."""
    with tempfile.NamedTemporaryFile(dir=Path.cwd(), prefix=".p4torch-"):
        return f"{Path.cwd()} can be written"


def _below(name: str, value: float, bound: float) -> str:
    if not value <= bound:
        raise ArithmeticError(f"{name} {value:.1e}, which should be below {bound:.0e}")
    return f"{name} {value:.1e}"


TESTS: dict[str, Callable[[], str]] = {"layer": _layer, "flow": _flow, "energies": _energies, "files": _files}
