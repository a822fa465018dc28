"""`import p4torch` costs next to nothing: torch is imported when a public name is used first."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import p4torch

SOURCE = Path(p4torch.__file__)


def declared() -> dict[str, str]:
    """Where the imports for type checkers say that each public name is."""
    tree = ast.parse(SOURCE.read_text("utf-8"))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return {
        alias.name: str(node.module)
        for node in imports
        for alias in node.names
        if str(node.module).startswith("p4torch")
    }


def test_every_public_name_is_the_one_that_type_checkers_see() -> None:
    homes = declared()
    assert set(homes) == set(p4torch.__all__)
    for name, home in homes.items():
        if home != "p4torch":
            assert getattr(p4torch, name) is getattr(importlib.import_module(home), name), name


def test_names_are_listed_before_they_are_used() -> None:
    assert set(p4torch.__all__) <= set(dir(p4torch))
    with pytest.raises(AttributeError, match="has no attribute 'Joint': it is called 'JointMerge' now"):
        getattr(p4torch, "Joint")  # noqa: B009


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import p4torch; p4torch.__version__; dir(p4torch); hasattr(p4torch, 'nothing')", False),
        ("import p4torch; p4torch.core.low_rank.LowRank; p4torch.Orthogonal; p4torch.linalg", True),
        ("from p4torch import *; Orthogonal; testing.check_bijection; flows.Flow", True),
        ("from p4torch import linalg, merge", True),
    ],
)
def test_torch_comes_with_the_first_name(code: str, imported: bool) -> None:
    code += f"; import sys; assert ('torch' in sys.modules) == {imported}"
    subprocess.run([sys.executable, "-c", code], check=True)
