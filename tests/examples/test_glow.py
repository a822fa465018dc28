"""The Glow example: its data and flows, a short run from end to end, and a long one without a refused merge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import p4torch as p4
from examples import glow
from p4torch.flows import Glow, InvertibleConv1x1
from p4torch.runs.folder import read_json
from p4torch.testing import check_bijection

pytest.importorskip("sklearn")

#: log|det W| of the 1 x 1 layers: far from singular, and far from overflow.
SINGULAR = 20.0


def test_images_have_17_levels() -> None:
    for part in glow.images():
        assert part.shape[1:] == (1, 8, 8) and part.min() == 0 and part.max() == 16 and torch.equal(part, part.round())
    x = glow.dequantised(glow.images()[0], torch.Generator().manual_seed(0))
    assert torch.equal((x * glow.LEVELS).floor(), glow.images()[0]) and x.max() < 1


def test_a_uniform_density_costs_all_bits() -> None:
    assert float(glow.bits(torch.zeros(()))) == pytest.approx(torch.tensor(17.0).log2().item())


def test_lu_mixing_is_a_bijection_and_starts_as_p4s() -> None:
    class Flat(glow.LUConv1x1):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z, logabsdet = super().forward(x.unflatten(-1, (3, 1, 1)))
            return z.flatten(-3), logabsdet

        def inverse(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, logabsdet = super().inverse(z.unflatten(-1, (3, 1, 1)))
            return x.flatten(-3), logabsdet

    weight = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    check_bijection(lambda: Flat(weight), 3, compile=False)
    x = torch.randn(2, 3, 4, 4)
    layer = InvertibleConv1x1(3, init=weight, bias=False)
    torch.testing.assert_close(glow.LUConv1x1(weight)(x)[0], layer(x)[0])


def test_flows_have_as_many_parameters() -> None:
    pytest.importorskip("normflows")
    setting = glow.Setting()
    ours, lu, peer = (glow.count(glow.MODELS[kind](setting)) for kind in (glow.P4, glow.LU, glow.PEER))
    assert ours == lu <= peer <= 1.1 * ours


def test_a_short_run(tmp_path: Path) -> None:
    pytest.importorskip("normflows")
    out = tmp_path / "run"
    assert glow.main(["--short", "--seeds", "0", "--out", str(out)]) == 0
    rows = read_json(out / "metrics.json")["rows"]
    assert [row["kind"] for row in rows] == list(glow.MODELS)
    assert rows[0]["merged"] > 0 and rows[0]["skipped"] == 0
    assert all(len(row["samples"]) == 4 and 0 < row["bits"] < 50 for row in rows)
    assert (out / "glow.png").exists() and "bits per dimension" in (out / "table.md").read_text()
    assert glow.main(["--short", "--seeds", "0", "--out", str(out), "--resume"]) == 0
    again = read_json(out / "metrics.json")["rows"]
    assert [row["bits"] for row in again] == [row["bits"] for row in rows]


@pytest.mark.slow
def test_ten_thousand_steps_without_a_refused_merge() -> None:
    torch.manual_seed(0)
    flow = Glow(1, 4, 4, levels=2, depth=1, hidden=4)
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=1e-3)
    scheduler = p4.MergeScheduler(flow, optimizer)
    pixels = glow.images()[0][:, :, 2:6, 2:6]
    worst = 0.0
    for step in range(10_000):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(pixels), (16,), generator=generator)
        loss = -flow.log_prob(glow.dequantised(pixels[chosen], generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            sizes = [site.perturbation.logabsdet(site.base).abs() for site in p4.sites(flow)]
            worst = max(worst, float(torch.stack(sizes).max()))
    intervals = [site.perturbation.interval for site in p4.sites(flow)]
    assert scheduler.skipped == 0 and scheduler.merged == sum(10_000 // interval for interval in intervals) > 0
    assert worst < SINGULAR and bool(flow.log_prob(some_images()).isfinite().all())


def some_images() -> torch.Tensor:
    return torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(1))
