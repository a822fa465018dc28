"""The commands of the experiments as tests call them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import Result
from experiments.cli import app
from typer.testing import CliRunner

#: The repository's root and `src` are importable.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def call(*arguments: str) -> Result:
    """The command in this process."""
    return CliRunner(env={"TERMINAL_WIDTH": "200", "NO_COLOR": "1"}).invoke(app, list(arguments))


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own, and in a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
