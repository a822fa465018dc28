"""Where a result came from: command, versions, revision, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import p4torch


def provenance(**fields: Any) -> dict[str, Any]:
    """What a reader needs to make a result again. `fields` (seeds, threads, wall time) are added as given."""
    packages = ("p4torch", "torch", "pytorch-lightning", "numpy", "matplotlib", "safetensors", "scikit-learn")
    return {
        "command": _command(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "versions": {name: number for name in packages if (number := _version(name)) is not None},
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "cpu": cpu_model(),
            "cores": cores(),
        },
        "threads": torch.get_num_threads(),
        **fields,
    }


def described() -> str:
    """Versions, threads and the machine in one line, for people."""
    known = provenance()
    versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    machine = known["machine"]
    return (
        f"Python {known['python']}, {versions}; {known['threads']} threads of {machine['cores']} cores, "
        f"{machine['cpu']}, {machine['system']}"
    )


def _command() -> str:
    program = Path(sys.argv[0])
    start = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*start, *sys.argv[1:]])


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The commit of the source tree that the package runs from, "+" after it if files were changed; None elsewhere."""
    package = Path(p4torch.__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top) / "src" / "p4torch" != package:
        return None
    revision = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    return revision and revision + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
