"""`OpenMMEnergy`: OpenMM's numbers and gradients as tensors, from real processes that fail, die and end."""

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import openmm
import pytest
import torch
from openmm import unit
from tests.molecules.systems import FORCE_FIELDS, shaken, system_of
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.openmm_energy import OpenMMEnergy
from p4torch.molecules.openmm_workers import EnergyError

DIFFERENCES = 1e-6  # relative: central differences of step 1e-5 nm in float64, and their rounding
SINGLE = 1e-6  # relative: the energy is computed in float64 and rounded once
PATIENCE = 30.0  # seconds: how long a process may take to end on a loaded machine


def _failing(frame: float) -> openmm.System:
    """Alanine dipeptide with a force that raises where atom 0 has x > `frame` nm."""
    system = copy.deepcopy(system_of().openmm_system)
    system.addForce(openmm.PythonForce(Trap(frame)))
    return system


class Trap:
    """A force of zero that raises beyond a limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, state: openmm.State) -> tuple[float, object]:
        x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        if x[0, 0] > self.limit:
            raise ValueError("this frame is cursed")
        return 0.0, 0 * x


def _eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def pair() -> OpenMMEnergy:
    """Two workers that the tests of this file share."""
    return OpenMMEnergy(system_of().openmm_system, workers=2, chunk=8)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forcefield", FORCE_FIELDS)
def test_energy_and_gradient_are_openmms(forcefield: str) -> None:
    system = system_of("lysine-dipeptide", forcefield)
    x = shaken(system, 4)
    energies, gradients = OpenMMEnergy(system.openmm_system, workers=0).energy_and_gradient(x)
    context = openmm.Context(
        system.openmm_system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    for frame, energy, gradient in zip(x, energies, gradients, strict=True):
        context.setPositions(frame.tolist())
        state = context.getState(energy=True, forces=True)
        assert float(energy) == state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        assert torch.equal(gradient, -torch.tensor(forces))


def test_gradient_against_finite_differences() -> None:
    system = system_of()
    potential = OpenMMEnergy(system.openmm_system, workers=0)
    x = shaken(system, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(potential.energy(x).sum(), x)
    step = 1e-5 * torch.eye(66, dtype=torch.float64).reshape(66, 1, 22, 3)
    energies = potential.energy(x.detach() + torch.cat([step, -step]))
    slopes = ((energies[:66] - energies[66:]) / 2e-5).T.reshape(2, 22, 3)
    assert (gradient - slopes).abs().max() < DIFFERENCES * gradient.abs().max()


def test_the_gradient_weighs_what_comes_from_above() -> None:
    system = system_of()
    potential = OpenMMEnergy(system.openmm_system, workers=0)
    x = shaken(system, 6).reshape(2, 3, 22, 3).requires_grad_()
    energy, gradient = potential.energy_and_gradient(x)
    assert energy.shape == (2, 3) and not energy.requires_grad
    assert gradient.shape == x.shape and not gradient.requires_grad
    (weighed,) = torch.autograd.grad((potential.energy(x) ** 2).sum(), x)
    assert torch.equal(weighed, 2 * energy[..., None, None] * gradient)


def test_results_do_not_depend_on_workers_or_chunks(pair: OpenMMEnergy) -> None:
    system = system_of()
    x = shaken(system, 37)
    expected = OpenMMEnergy(system.openmm_system, workers=0).energy_and_gradient(x)
    with OpenMMEnergy(system.openmm_system, workers=3, chunk=5) as three:
        results = [pair.energy_and_gradient(x), three.energy_and_gradient(x)]
        assert len(three.processes) == 3
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (20,), (3, 7), (2, 0, 4)])
def test_leading_dimensions(pair: OpenMMEnergy, shape: tuple[int, ...]) -> None:
    x = system_of().positions.expand(*shape, 22, 3)
    energy, gradient = pair.energy_and_gradient(x)
    assert energy.shape == pair.energy(x).shape == shape
    assert gradient.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_come_back_and_the_work_is_done_in_float64(dtype: torch.dtype) -> None:
    system = system_of()
    potential = OpenMMEnergy(system.openmm_system, workers=0)
    x = shaken(system, 5).to(dtype).requires_grad_()
    energy = potential.energy(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    exact, slope = potential.energy_and_gradient(x.detach().double())
    assert energy.dtype == gradient.dtype == dtype
    assert torch.allclose(energy.double(), exact, rtol=SINGLE, atol=0)
    assert torch.equal(gradient, slope.to(dtype))


def test_positions_that_are_not_contiguous() -> None:
    system = system_of()
    potential = OpenMMEnergy(system.openmm_system, workers=0)
    x = shaken(system, 6)
    turned = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(potential.energy(turned), potential.energy(x))
    assert torch.equal(potential.energy(x[::2]), potential.energy(x)[::2])


def test_a_second_derivative_is_refused_and_not_zero() -> None:
    potential = OpenMMEnergy(system_of().openmm_system, workers=0)
    x = system_of().positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(potential.energy(x), x, create_graph=True)
    with pytest.raises(EnergyError, match="differentiated once, not twice"):
        torch.autograd.grad(gradient.square().sum(), x)


def test_many_gradients_at_once() -> None:
    potential = OpenMMEnergy(system_of().openmm_system, workers=0)
    x = shaken(system_of(), 2).requires_grad_()
    energy, directions = potential.energy(x), torch.randn(3, 2, dtype=x.dtype)

    def gradient(direction: torch.Tensor, batched: bool = False) -> torch.Tensor:
        return torch.autograd.grad(energy, x, direction, retain_graph=True, is_grads_batched=batched)[0]

    expected = torch.stack([gradient(direction) for direction in directions])
    assert torch.equal(gradient(directions, batched=True), expected)
    assert torch.equal(torch.func.vmap(gradient)(directions), expected)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_refused_arguments() -> None:
    physics = system_of().openmm_system
    with pytest.raises(ArgumentError, match=r"`openmm_system` must be an openmm.System, got str"):
        OpenMMEnergy("system")
    with pytest.raises(ArgumentError, match=r"`platform` must be one of Reference.*, got 'Abacus'"):
        OpenMMEnergy(physics, platform="Abacus")
    for workers in (-1, 1.5, True):
        with pytest.raises(ArgumentError, match=r"`workers` must be an integer >= 0"):
            OpenMMEnergy(physics, workers=workers)
    with pytest.raises(ArgumentError, match=r"`chunk` must be an integer >= 1, got 0"):
        OpenMMEnergy(physics, chunk=0)
    with pytest.raises(ArgumentError, match=r"`openmm_system` must be one that platform Reference can run"):
        OpenMMEnergy(openmm.System())


def test_refused_positions() -> None:
    potential = OpenMMEnergy(system_of().openmm_system, workers=0)
    with pytest.raises(ArgumentError, match=r"`x` must be of shape \(..., 22, 3\), got \(66,\)"):
        potential.energy(torch.zeros(66))
    with pytest.raises(ArgumentError, match=r"`x` must be a tensor of a floating-point dtype, got torch.int64"):
        potential.energy(torch.zeros(22, 3, dtype=torch.long))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_frame_that_is_not_finite_is_named_and_the_next_call_works(workers: int, pair: OpenMMEnergy) -> None:
    system = system_of()
    potential = pair if workers else OpenMMEnergy(system.openmm_system, workers=0)
    x = shaken(system, 30)
    bad = x.clone()
    bad[17, 4, 2] = float("nan")
    with pytest.raises(ArgumentError, match=r"the first frame 17"):
        potential.energy(bad)
    assert potential.energy(x).isfinite().all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_frame_that_openmm_fails_at_is_named_and_the_next_call_works(workers: int) -> None:
    x = system_of().positions.repeat(50, 1, 1)
    bad = x.clone()
    bad[23] += 5.0
    bad[41] += 5.0
    with OpenMMEnergy(_failing(4.0), workers=workers, chunk=4) as potential:
        good = potential.energy(x)
        before = potential.processes
        with pytest.raises(EnergyError, match=r"OpenMM failed at frame 23: .*cursed"):
            potential.energy(bad)
        assert torch.equal(potential.energy(x), good)
        assert potential.processes == before


def test_atoms_on_top_of_each_other_are_no_failure(pair: OpenMMEnergy) -> None:
    """What a poor generator makes: training deals with it by a regularised energy."""
    x = shaken(system_of(), 20)
    x[3, 1] = x[3, 0]
    energy = pair.energy(x)
    assert not energy[3].isfinite() or energy[3] > 1e6
    assert energy[:3].isfinite().all() and energy[4:].isfinite().all()


# --- processes --------------------------------------------------------------------------------------------------------


def test_small_batches_start_no_process() -> None:
    with OpenMMEnergy(system_of().openmm_system, workers=2, chunk=16) as potential:
        potential.energy(shaken(system_of(), 16))
        assert potential.processes == []


def test_workers_start_once_and_end_on_closing() -> None:
    x = shaken(system_of(), 10)
    with OpenMMEnergy(system_of().openmm_system, workers=2, chunk=4) as potential:
        first = potential.energy(x)
        processes = potential.processes
        potential.energy(x)
        assert potential.processes == processes and all(_alive(process) for process in processes)
    assert not any(_alive(process) for process in processes)
    assert torch.equal(potential.energy(x), first)  # closed is not broken
    processes = potential.processes
    del potential
    assert _eventually(lambda: not any(_alive(process) for process in processes))


def test_a_worker_that_dies_is_named_and_started_again() -> None:
    x = shaken(system_of(), 40)
    with OpenMMEnergy(system_of().openmm_system, workers=2, chunk=4) as potential:
        first = potential.energy(x)
        victim, other = potential.processes
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(EnergyError, match=rf"worker 0 \(process {victim}\) ended with exit code -9"):
            potential.energy(x)
        assert torch.equal(potential.energy(x), first)
        assert other in potential.processes and victim not in potential.processes
        assert len(potential.processes) == 2


def test_copies_and_pickles_have_workers_of_their_own(pair: OpenMMEnergy) -> None:
    x = shaken(system_of(), 20)
    for again in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        with again:
            assert repr(again) == repr(pair) == "OpenMMEnergy(atoms=22, workers=2, platform='Reference')"
            assert torch.equal(again.energy(x), pair.energy(x))
            assert not set(again.processes) & set(pair.processes)


def _in_a_daemon(connection: "multiprocessing.connection.Connection") -> None:
    potential = OpenMMEnergy(system_of().openmm_system)
    try:
        OpenMMEnergy(system_of().openmm_system, workers=1)
    except ArgumentError as error:
        energy = potential.energy(system_of().positions.repeat(200, 1, 1))
        connection.send((potential.workers, tuple(energy.shape), str(error)))


def test_a_daemonic_process_computes_by_itself() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_in_a_daemon, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(PATIENCE)
    workers, shape, refusal = ours.recv()
    process.join(PATIENCE)
    assert workers == 0 and shape == (200,)
    assert "`workers` must be 0 in a daemonic process" in refusal


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_leaves_the_workers_to_its_parent(pair: OpenMMEnergy) -> None:
    x = shaken(system_of(), 20)
    first, processes = pair.energy(x), pair.processes
    child = os.fork()
    if child == 0:
        try:
            own = torch.equal(pair.energy(x), first) and not set(pair.processes) & set(processes)
            pair.close()
            os._exit(0 if own else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(pair.energy(x), first) and pair.processes == processes


SCRIPT = """
import sys, time
from p4torch.molecules.openmm_energy import OpenMMEnergy
from p4torch.molecules.system import MolecularSystem

if __name__ == "__main__":
    system = MolecularSystem.alanine_dipeptide()
    potential = OpenMMEnergy(system.openmm_system, workers=2, chunk=8)
    x = system.positions.repeat(40, 1, 1)
    potential.energy(x)
    print(*potential.processes, flush=True)
    while sys.argv[1] == "busy":
        potential.energy(x)
    if sys.argv[1] == "idle":
        time.sleep(1000)
    if sys.argv[1] == "fail":
        raise ValueError("of the script")
"""


def _script(tmp_path: Path, mode: str) -> tuple["subprocess.Popen[str]", list[int]]:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(path), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored, if these tests run in the background
    )
    assert process.stdout is not None
    return process, [int(word) for word in process.stdout.readline().split()]


@pytest.mark.parametrize("mode", ["idle", "busy"])
def test_no_worker_outlives_a_program_that_is_killed(tmp_path: Path, mode: str) -> None:
    process, workers = _script(tmp_path, mode)
    assert len(workers) == 2 and all(_alive(worker) for worker in workers)
    process.kill()
    process.communicate()
    assert _eventually(lambda: not any(_alive(worker) for worker in workers))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["end", "fail"])
def test_no_worker_outlives_a_program_that_ends(tmp_path: Path, mode: str) -> None:
    process, workers = _script(tmp_path, mode)
    _, errors = process.communicate(timeout=PATIENCE)
    assert len(workers) == 2
    assert _eventually(lambda: not any(_alive(worker) for worker in workers))
    assert (errors == "") == (mode == "end")
    assert errors.count("Traceback") == (mode == "fail")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["idle", "busy"])
def test_control_c_prints_the_traceback_of_the_program_alone(tmp_path: Path, mode: str) -> None:
    process, workers = _script(tmp_path, mode)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # it would compute for ever, beside all other tests
        raise
    assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors
    assert _eventually(lambda: not any(_alive(worker) for worker in workers))


def test_an_interrupted_call_leaves_nothing_behind_for_the_next(pair: OpenMMEnergy) -> None:
    x = shaken(system_of(), 4000)
    first = pair.energy(x[:50])
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.03)
            while True:
                pair.energy(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert torch.equal(pair.energy(x[:50]), first)


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    output = subprocess.run([sys.executable, str(path), "end"], capture_output=True, text=True, timeout=PATIENCE)
    assert output.returncode != 0
    assert 'needs `if __name__ == "__main__":`' in output.stderr


def test_threads_take_turns(pair: OpenMMEnergy) -> None:
    from concurrent.futures import ThreadPoolExecutor

    batches = [shaken(system_of(), 30) for _ in range(8)]
    expected = [pair.energy(x) for x in batches]
    with ThreadPoolExecutor(4) as threads:
        results: list[Tensor] = list(threads.map(pair.energy, batches))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
