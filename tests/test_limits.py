"""The limits that CONTRIBUTING.md states: lengths of files and functions, and helpers that stand once."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "p4torch"
#: Lines of a file; of a function, and of a property's file, without docstrings.
FILE, FUNCTION, PROPERTY = 300, 60, 210
#: Functions of so many lines are helpers that may not be written twice; shorter ones say nothing.
HELPER = 4

FILES = sorted(SOURCE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def docstring_lines(node: ast.AST) -> int:
    """Of a module, a class or a function itself."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) or ast.get_docstring(node) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def body(function: Function) -> list[ast.stmt]:
    return function.body[1:] if docstring_lines(function) else function.body


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_lengths(file: Path) -> None:
    text = file.read_text()
    tree = ast.parse(text)
    count = len(text.splitlines())
    assert count <= FILE
    for function in functions(tree):
        length = (function.end_lineno or 0) - function.lineno + 1 - docstring_lines(function)
        assert length <= FUNCTION, function.name
    if file.parent.name == "properties":
        assert count - sum(docstring_lines(node) for node in ast.walk(tree)) <= PROPERTY


def test_no_helper_is_written_twice() -> None:
    places = defaultdict(list)
    for file in FILES:
        for function in functions(ast.parse(file.read_text())):
            statements = body(function)
            if statements and (function.end_lineno or 0) - statements[0].lineno + 1 >= HELPER:
                text = "\n".join(ast.dump(part) for part in (function.args, *statements))
                places[text].append(f"{file.relative_to(SOURCE)}:{function.lineno} {function.name}")
    assert [same for same in places.values() if len(same) > 1] == []
