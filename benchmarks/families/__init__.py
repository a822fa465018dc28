"""The families of rows, in the order of the table."""

from __future__ import annotations

from benchmarks.families import flows, invertible, linear, memory, merges, molecules, orthogonal, scaling
from benchmarks.rows import Job


def all_jobs() -> list[Job]:
    """Everything that `python -m benchmarks` measures."""
    modules = (linear, invertible, orthogonal, flows, merges, memory, scaling, molecules)
    return [job for module in modules for job in module.jobs()]
