"""Work on threads: right, alone on its thread, and without a trace in torch's settings."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator

import pytest
import torch
from tests.molecules.systems import shaken, system_of

from p4torch.molecules.force_field import ForceField
from p4torch.molecules.threads import map_on_threads

FRAMES, TIME_LIMIT = 400, 60.0


@pytest.fixture(params=[1, 2, 3])
def count(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_settings_stay(count: int) -> None:
    result = map_on_threads(lambda piece: (piece, torch.get_num_threads(), threading.get_ident()), range(20))
    assert [piece for piece, _, _ in result] == list(range(20))
    assert {threads for _, threads, _ in result} == {1}
    assert torch.get_num_threads() == count
    assert (threading.get_ident() in {thread for _, _, thread in result}) == (count == 1)


def test_errors_arrive(count: int) -> None:
    with pytest.raises(ZeroDivisionError):
        map_on_threads(lambda piece: 1 / piece, [1, 0, 2])


def test_energies_do_not_depend_on_threads(count: int) -> None:
    force_field, x = ForceField(system_of().openmm_system), shaken(system_of(), FRAMES)
    energy, gradient = force_field.energy_and_gradient(x)
    torch.set_num_threads(1)
    assert all(map(torch.equal, (energy, gradient), force_field.energy_and_gradient(x)))


def test_inference_mode(count: int) -> None:
    force_field = ForceField(system_of().openmm_system)
    with torch.inference_mode():
        assert force_field.energy(shaken(system_of(), FRAMES).float()).shape == (FRAMES,)


def test_many_callers(count: int) -> None:
    """Threads of the user's own call at once."""
    force_field, x = ForceField(system_of().openmm_system), shaken(system_of(), FRAMES)
    result: list[torch.Tensor] = []
    callers = [threading.Thread(target=lambda: result.append(force_field.energy(x))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(TIME_LIMIT)
    assert len(result) == 4 and all(torch.equal(energy, force_field.energy(x)) for energy in result)


def _squares() -> None:
    os._exit(0 if map_on_threads(lambda piece: piece**2, range(5)) == [0, 1, 4, 9, 16] else 1)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(count: int) -> None:
    map_on_threads(abs, range(3))
    child = multiprocessing.get_context("fork").Process(target=_squares)
    child.start()
    child.join(TIME_LIMIT)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0
