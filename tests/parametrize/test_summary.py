"""`summary`: the sites of a model as a table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import p4torch as p4

#: Of float32: a base in its set.
ROUNDING = 1e-5


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    nn.init.orthogonal_(net[2].weight)
    p4.perturb(net, "0.weight", p4.Invertible, rank=2)
    p4.perturb(net, "1.weight", p4.Nonnegative)
    return p4.perturb(net, "2.weight", p4.Orthogonal)


def test_rows_say_what_is_perturbed() -> None:
    invertible, nonnegative, orthogonal = p4.summary(model()).rows
    assert (invertible.name, invertible.shape, invertible.property) == ("0.weight", (8, 8), "Invertible")
    assert "rank=2" in invertible.perturbation and invertible.trainable == 2 * 8 * 2
    assert (nonnegative.shape, nonnegative.trainable, nonnegative.defect) == ((8,), 8, 0)
    assert orthogonal.property == "Orthogonal" and "block=8" in orthogonal.perturbation
    assert orthogonal.trainable == 64 and orthogonal.defect is not None and orthogonal.defect < ROUNDING


def test_the_table_lists_and_adds_up() -> None:
    table = p4.summary(model())
    lines = str(table).splitlines()
    assert repr(table) == str(table)
    assert lines[0].split() == ["name", "shape", "property", "perturbation", "trainable", "skips", "defect"]
    assert lines[2].startswith("0.weight  8 x 8  Invertible") and len(lines) == 6
    assert table.trainable == 32 + 8 + 64 and table.perturbed == 64 + 8 + 32
    assert lines[-1] == "3 sites: 104 trainable numbers, 104 perturbed ones"
    assert len({len(line) for line in lines[:5]}) == 1, "columns of equal width"


def test_skips_and_defects_are_counted() -> None:
    net = model()
    sites = list(p4.sites(net))
    with torch.no_grad():
        sites[0].perturbation.u.fill_(torch.nan)
    p4.merge(net)
    with torch.no_grad():
        sites[2].base.mul_(2)  # what no merge does
    invertible, _, orthogonal = p4.summary(net).rows
    assert invertible.skips == 1 and orthogonal.defect is not None and orthogonal.defect > 1


def test_frozen_perturbations_train_no_numbers() -> None:
    net = model()
    net[0].requires_grad_(False)
    assert p4.summary(net).rows[0].trainable == 0


def test_no_sites() -> None:
    table = p4.summary(nn.Linear(2, 2))
    assert table.rows == () and str(table).splitlines()[-1] == "0 sites: 0 trainable numbers, 0 perturbed ones"
    with pytest.raises(p4.ArgumentError, match=r"`model` must be an nn.Module"):
        p4.summary(None)  # type: ignore[arg-type]


def test_on_the_meta_device() -> None:
    layer = p4.perturb(nn.Linear(4, 4, device="meta"), "weight", p4.Invertible)
    (row,) = p4.summary(layer).rows
    assert row.defect is None and str(p4.summary(layer)).splitlines()[2].endswith("-")
