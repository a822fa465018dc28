"""What every test starts from: one thread a worker, seeds that a failure prints, and no CUDA tests without a device."""

from __future__ import annotations

import logging
import random
import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Compilation logs megabytes that a failing test would print.
logging.getLogger("torch.__trace").propagate = False

settings.register_profile("p4torch", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("p4torch")


TESTS = Path(__file__).parent
#: What folders and files of tests import beyond torch, numpy, pytest and hypothesis: they are left out without it.
NEEDS = {
    "examples": ("matplotlib", "rich", "safetensors", "sklearn", "typer"),
    "experiments": ("matplotlib", "rich", "safetensors", "sklearn", "typer"),
    "molecules": ("mdtraj", "openmm", "pymbar", "rich", "safetensors", "typer"),
    "runs": ("rich",),
    "parametrize/test_freezing.py": ("pytorch_lightning",),
    "training/test_lightning.py": ("pytorch_lightning",),
    "training/test_training.py": ("pytorch_lightning",),
    "examples/test_chains.py": ("mdtraj", "openmm", "pymbar"),
    "examples/test_little_md.py": ("mdtraj", "openmm", "pymbar"),
    "test_benchmarks.py": ("matplotlib", "rich"),
    "test_benchmarks_arrival.py": ("matplotlib", "rich"),
    "test_benchmarks_properties.py": ("matplotlib", "rich"),
    "test_cli.py": ("rich", "typer"),
    "test_examples_arrive.py": ("matplotlib", "rich"),
}
MISSING = {name: [package for package in needs if find_spec(package) is None] for name, needs in NEEDS.items()}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    inside = collection_path.relative_to(TESTS).as_posix() if collection_path.is_relative_to(TESTS) else ""
    return True if MISSING.get(inside) else None


def pytest_report_header() -> list[str]:
    return [f"left out: tests/{name}, needs {', '.join(packages)}" for name, packages in MISSING.items() if packages]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The workers share the machine's cores, and small matrices are faster on one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> Iterator[int]:
    """A seed of the test's own: the order of tests changes nothing. Captured output, so printed on failure only."""
    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"seed of this test: {seed}")
    random.seed(seed)
    torch.manual_seed(seed)
    yield seed


@pytest.fixture(autouse=True)
def compiled_afresh() -> None:
    """`torch.compile` counts recompilations of a function over the whole process, and gives up after a few: each test
    begins with none."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
