"""What is merged at once, and numbers that tell tensors apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import p4torch as p4
from p4torch.merging import gathering
from p4torch.merging.distributed import fingerprint
from p4torch.merging.joint import groups


def test_as_many_sites_merge_at_once_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of 8 x 8 fit; one of 32 x 32 comes alone, though it is too large."""
    model = nn.Sequential(*(nn.Linear(size, size) for size in (8, 8, 32, 8)))
    for layer in model:
        p4.perturb(layer, "weight", p4.LowRankUpdate, rank=1)
    monkeypatch.setattr(gathering, "BATCH_BYTES", 4 * 2 * (8 * 8 + 2 * 8))
    sizes = [len(batch) for batch in gathering.batches(groups(model), processes=2)]
    assert sizes == [2, 1, 1]
    assert [len(batch) for batch in gathering.batches(groups(model), processes=1)] == [3, 1]  # those alike


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.bool]
)
def test_fingerprints(dtype: torch.dtype) -> None:
    """The same for the same bits, not a number included; another one for other bits, and for another order of rows."""
    tensor = torch.arange(12).view(4, 3).remainder(5).to(dtype)
    if dtype.is_floating_point:
        tensor[1, 1] = torch.nan
    assert fingerprint(tensor) == fingerprint(tensor.clone())
    assert fingerprint(tensor) != fingerprint(tensor.flip(0))
    other = tensor.clone()
    other[2, 0] = 1 - other[2, 0].to(torch.int64) if dtype == torch.bool else other[2, 0] + 1
    assert fingerprint(tensor) != fingerprint(other)
    assert fingerprint(tensor[0, 0]) == fingerprint(tensor[0, 0].clone())
