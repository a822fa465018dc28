"""The example of FSDP2, with the real torchrun: a run of which a process is killed ends as an undisturbed one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist

from p4torch.runs.folder import read_json

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
ROOT = Path(__file__).parents[2]
#: Of float32 matrices in the end, against those of the start.
ROUNDING = 1e-5


def torchrun(out: Path, *options: str, restarts: int = 0) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "-m", "examples.sharded", "--short", "--out", str(out), *options]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.slow
def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    from examples.sharded import SHORT, network

    assert "exitcode: -9" in torchrun(tmp_path / "killed", "--kill-at", "12", restarts=1)
    torchrun(tmp_path / "whole")
    killed, whole = (read_json(tmp_path / name / "metrics.json") for name in ("killed", "whole"))
    assert killed == whole
    assert whole["losses"][-1] < whole["losses"][0] and whole["skipped"] == 0
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    for name, before in network(SHORT, "fixed-singular-values").state_dict().items():
        if name.endswith(".original"):
            after = weights[name.replace("parametrizations.", "").removesuffix(".original")]
            one, other = torch.linalg.svdvals(before), torch.linalg.svdvals(after)
            torch.testing.assert_close(other, one, rtol=ROUNDING, atol=ROUNDING)
            assert not torch.allclose(before, after, atol=100 * ROUNDING)


def test_it_asks_for_torchrun_and_shows_an_example() -> None:
    command = [sys.executable, "-m", "examples.sharded"]
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "torchrun --nproc-per-node 2" in shown
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "torchrun" in refused.stderr
