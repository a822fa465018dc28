"""What every test starts from: one thread a worker, seeds that a failure prints, and no CUDA tests without a device."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Compilation logs megabytes that a failing test would print.
logging.getLogger("torch.__trace").propagate = False

settings.register_profile("p4torch", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("p4torch")


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
