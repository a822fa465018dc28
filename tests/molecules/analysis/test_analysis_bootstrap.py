"""Blocks, and sums over resampled blocks."""

import logging
import math
import subprocess
import sys

import pytest
import torch
from tests.molecules.analysis.chains import TwoStates

from p4torch.errors import ArgumentError, P4Error
from p4torch.molecules.analysis.bootstrap import (
    LEAST_BLOCKS,
    MOST_BLOCKS,
    correlation_blocks,
    resample,
    standard_error,
)
from p4torch.molecules.analysis.optional import optional

INEFFICIENCY = (0.95, 1.35)  # estimate / exact: the fast sum over lags is 18 % too large here, and scatters by 3 %
SPREAD = 0.15  # relative, of a standard error from 400 resamples
ROUNDING = 1e-10


def test_inefficiency_of_a_chain() -> None:
    chain = TwoStates(up=0.05, down=0.1)
    trajectory_ids = torch.arange(50).repeat_interleave(4000)
    blocks = correlation_blocks(chain.walk(4000, 50).flatten().double(), trajectory_ids)
    assert INEFFICIENCY[0] < blocks.inefficiency / chain.inefficiency < INEFFICIENCY[1]
    assert blocks.length >= 5 * blocks.inefficiency * (1 - ROUNDING) or blocks.count == MOST_BLOCKS


def test_blocks_are_consecutive_frames_of_one_walker() -> None:
    lengths = torch.tensor([500, 37, 900])
    trajectory_ids = torch.arange(3).repeat_interleave(lengths)
    shuffled = trajectory_ids[torch.randperm(len(trajectory_ids))]
    blocks = correlation_blocks(torch.randn(len(trajectory_ids)).double(), shuffled)
    assert int(blocks.index.max()) + 1 == blocks.count == len(blocks.index.unique())
    for trajectory in range(3):
        steps = blocks.index[shuffled == trajectory].diff()
        assert int(steps.min()) >= 0
        assert int(steps.max()) <= 1
    sizes = torch.bincount(blocks.index)
    assert int(sizes.min()) >= min(37, int(sizes.max()) // 2)
    owners = torch.stack([blocks.index, shuffled], -1).unique(dim=0)
    assert len(owners) == blocks.count


def test_numbers_of_blocks_have_bounds() -> None:
    drift = torch.linspace(0, 1, 10_000, dtype=torch.float64)
    one = torch.zeros(10_000).long()
    assert correlation_blocks(drift, one).count == LEAST_BLOCKS
    assert correlation_blocks(torch.zeros(10_000).double(), one).count == MOST_BLOCKS
    assert correlation_blocks(torch.randn(3).double(), one[:3]).count == 3


def test_block_sums() -> None:
    values = torch.randn(1000, 3, dtype=torch.float64)
    blocks = correlation_blocks(values, torch.zeros(1000).long())
    sums = blocks.sums(values)
    assert torch.allclose(sums.sum(0), values.sum(0), atol=ROUNDING)
    assert torch.allclose(sums[4], values[blocks.index == 4].sum(0), atol=ROUNDING)


def test_error_of_a_mean() -> None:
    values = torch.randn(500, 1, dtype=torch.float64)
    spread = standard_error(resample(values, replicates=400) / 500, 500)
    assert float(spread) == pytest.approx(float(values.std()) / math.sqrt(500), rel=SPREAD)


def test_error_is_infinite_where_a_replica_is_not_finite() -> None:
    replicas = torch.tensor([[1.0, math.inf, math.nan], [2.0, 1.0, 1.0]])
    assert standard_error(replicas, 10).isfinite().tolist() == [True, False, False]


def test_resample_needs_two_replicates() -> None:
    with pytest.raises(ArgumentError, match="`replicates`"):
        resample(torch.zeros(3, 1), replicates=1)


def test_a_missing_library_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(P4Error, match=r'no_such_module: pip install "p4torch\[experiments\]"'):
        optional("no_such_module", "experiments")


def test_pymbar_is_imported_without_a_word() -> None:
    code = "from p4torch.molecules.analysis.optional import optional; optional('pymbar', 'molecules').MBAR"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    level = logging.getLogger("pymbar").level
    optional("pymbar", "molecules")
    assert logging.getLogger("pymbar").level == level
