"""The first examples that a reader meets, run ten times longer: they get where they should, and merge everything."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import p4torch as p4

ROOT = Path(__file__).parents[1]
LONGER = 10
STEPS = re.compile(r"^for \w+ in range\((\d+)\):", flags=re.MULTILINE)

#: Mean squared error of a map that is learnt. An orthogonal map and a reversal are in the set: nothing is left but
#: rounding, of outputs of size 1 about 1e-7 in float32, squared. Three digits for a rate that does not fall.
LEARNT = 1e-10
#: Of the inverse in single precision, which has followed every merge.
INVERSE = 1e-4


def first_example(page: str) -> str:
    """The Python of a page up to the end of its first loop, which runs ten times as many steps."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    first = next(index for index, block in enumerate(blocks) if STEPS.search(block))
    return STEPS.sub(
        lambda match: match[0].replace(match[1], str(LONGER * int(match[1]))), "".join(blocks[: first + 1])
    )


def run(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", p4.StallWarning)
        warnings.simplefilter("error", p4.ProjectionWarning)
        exec(compile(first_example(page), page, "exec", dont_inherit=True), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_a_first_example_learns_its_map_and_merges_everything(page: str) -> None:
    names = run(page)
    scheduler = names["scheduler"]
    assert scheduler.merged == scheduler.steps // 50 > LONGER and not scheduler.skipped
    assert float(names["loss"].detach()) < LEARNT
    if "inverse" in names:
        residual = names["inverse"].detach() @ names["layer"].weight.detach() - torch.eye(64)
        assert float(residual.abs().max()) < INVERSE
