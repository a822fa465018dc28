"""Where numbers come from, and when rows of an earlier run may stand beside new ones."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from benchmarks.peers import versions
from p4torch.runs.provenance import provenance


def description(**settings: Any) -> dict[str, Any]:
    """Machine, versions (of the peers, too) and settings."""
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    return {**provenance(settings=settings, command=command), "peers": versions()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether rows of two descriptions may stand in one file: the same machine, code, versions and settings."""
    return all(_key(one, name) == _key(other, name) for name in _COMPARED)


def _key(description: dict[str, Any], name: str) -> Any:
    """Results may be tracked files: what a run itself writes must not look like another revision."""
    value = description.get(name)
    return value.removesuffix("+") if name == "git_revision" and isinstance(value, str) else value


_COMPARED = ("machine", "git_revision", "python", "versions", "peers", "settings")
