"""Workspaces that are given out, come back, and are let go."""

import pytest

from p4torch.flows._fused import workspace
from p4torch.flows._fused.workspace import IDLE_BYTES, IDLE_COUNT, Pool


class _Buffers:
    def __init__(self, size: int = 1) -> None:
        self.bytes = size


@pytest.fixture(autouse=True)
def _nothing_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_idle", [])


def test_a_workspace_comes_back_when_its_lease_is_gone() -> None:
    pool: Pool[_Buffers] = Pool()
    lease = pool.lease("a", _Buffers)
    first, other = lease.workspace, pool.lease("a", _Buffers).workspace
    assert other is not first
    del lease
    assert pool.lease("a", _Buffers).workspace is first
    assert pool.lease("b", _Buffers).workspace not in (first, other)
    assert Pool().lease("a", _Buffers).workspace not in (first, other)
    assert pool.lease("c", _Buffers, keep=False).workspace is not pool.lease("c", _Buffers).workspace


def test_the_oldest_are_let_go_where_there_are_too_many() -> None:
    pool: Pool[_Buffers] = Pool()
    first = pool.lease("first", _Buffers).workspace
    for key in range(IDLE_COUNT - 1):
        pool.lease(key, _Buffers)
    assert pool.lease("first", _Buffers).workspace is first  # and is now the newest
    kept = pool.lease(0, _Buffers).workspace
    pool.lease("one more", _Buffers)
    assert pool.lease(0, _Buffers).workspace is kept
    assert len(workspace._idle) == IDLE_COUNT


def test_all_pools_together_keep_so_many_bytes() -> None:
    pools: list[Pool[_Buffers]] = [Pool(), Pool(), Pool()]
    held = [pool.lease("a", lambda: _Buffers(IDLE_BYTES // 2)).workspace for pool in pools]
    assert [entry.workspace for entry in workspace._idle] == held[1:]
    assert pools[1].lease("b", lambda: _Buffers(IDLE_BYTES + 1)).workspace.bytes > IDLE_BYTES
    assert [entry.workspace for entry in workspace._idle] == held[1:]
