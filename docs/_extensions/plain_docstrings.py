"""Docstrings here are plain text: indented blocks are formulas, and | and * are mathematics. This makes reST of it."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

#: Sections that napoleon reads. What is indented below them is no formula.
SECTION = re.compile(r"(Args|Returns|Raises|Example|Examples|Note|Yields|Attributes):$")
INDENT = "    "


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", rewrite, priority=400)  # before napoleon
    return {"parallel_read_safe": True}


def rewrite(app: Sphinx, what: str, name: str, object: object, options: object, lines: list[str]) -> None:
    """Formulas become literal blocks, in place; elsewhere | * and a trailing _ lose what they mean in reST."""
    made: list[str] = []
    section, formula = False, False
    for index, line in enumerate(lines):
        if line and not line.startswith(" "):
            section, formula = bool(SECTION.match(line)), False
        elif line and not section and not formula:
            blank = index == 0 or not lines[index - 1].strip()
            formula = blank and line.startswith(INDENT) and not line.lstrip().startswith(">>>")
            if formula:
                made += ["::", ""]
        made.append(line if formula or line.lstrip().startswith((">>>", "...")) else escaped(line))
    lines[:] = made


def escaped(line: str) -> str:
    """The line, escaped outside of its `code`."""
    bullet, text = re.match(r"( *\* )?(.*)", line).groups("")
    parts = text.split("`")
    parts[::2] = [re.sub(r"([|*\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    return bullet + "`".join(parts)
