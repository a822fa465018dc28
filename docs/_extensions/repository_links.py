"""Links that work on GitHub work in the built pages, too: one to a Markdown file outside of `docs/` leads to the page
that includes it."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

INCLUDE = re.compile(r"```\{include\} (\S+)\.md$", flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", find_pages)
    app.connect("doctree-read", redirect)
    return {"parallel_read_safe": True}


def find_pages(app: Sphinx) -> None:
    """From each included file, without its ending, to the page that includes it."""
    app.included_in = {}
    for path in Path(app.srcdir).rglob("*.md"):
        page = path.relative_to(app.srcdir).with_suffix("").as_posix()
        for target in INCLUDE.findall(path.read_text(encoding="utf-8")):
            app.included_in[str((path.parent / target).resolve())] = page


def redirect(app: Sphinx, doctree: nodes.document) -> None:
    for link in doctree.findall(addnodes.pending_xref):
        if link.get("refdomain") == "doc":
            link["reftarget"] = app.included_in.get(link["reftarget"], link["reftarget"])
