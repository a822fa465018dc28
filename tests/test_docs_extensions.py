"""How plain docstrings become reST."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sphinx")


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "docs" / "_extensions"), *sys.path])
    return importlib.import_module("plain_docstrings")


def rewritten(extension: ModuleType, text: str) -> str:
    lines = text.split("\n")
    extension.rewrite(None, "class", "name", None, None, lines)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("plain", "rest"),
    [
        ("|det A| and log|det A|", r"\|det A\| and log\|det A\|"),
        ("`|det A|` is code, 2 * 3 is not", r"`|det A|` is code, 2 \* 3 is not"),
        ("A_ and the U_i of snake_case", r"A\_ and the U_i of snake_case"),
        ("The set:\n\n    A |x|\n    B\n\nand more", "The set:\n\n::\n\n    A |x|\n    B\n\nand more"),
        ("Two:\n\n    A\n\n    B\n\nand more", "Two:\n\n::\n\n    A\n\n    B\n\nand more"),
        ("Args:\n    a: one.\n\n    b: |two|.", "Args:\n    a: one.\n\n    b: \\|two\\|."),
        ("Run\n\n    >>> 2 * 3\n    6", "Run\n\n    >>> 2 * 3\n    6"),
        ("* a * b that\n  goes on", "* a \\* b that\n  goes on"),
    ],
)
def test_formulas_are_literal_and_mathematics_is_no_markup(extension: ModuleType, plain: str, rest: str) -> None:
    assert rewritten(extension, plain) == rest
