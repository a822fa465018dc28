"""`metrics.json`, which says what is finished, and `table.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.arrival.cells import Task
from benchmarks.arrival.training import Record
from p4torch.errors import CheckpointError
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import differences, read_json, writable_folder, write_compact

HEAD = """\
# Does training with the defaults arrive?

"defaults" is `p4.perturb(layer, "weight", p4.X)`, `p4.parameter_groups(model)`, `p4.MergeScheduler(model, optimizer)`,
with Adam at the learning rate of the other parameters. All ways to train start at the same weights, see the same
batches and take turns in one process, on one thread. Numbers are medians over seeds (least to largest). Losses are
means over the last hundredth of the steps. CPU seconds are those of the steps alone, merges and optimizer included,
data left out.
"""


class Report:
    """The tasks of a folder. Each is written when it is finished."""

    def __init__(self, folder: Path, tasks: Mapping[str, Task]) -> None:
        self.folder, self.tasks = writable_folder(folder), tasks
        self.path = folder / "metrics.json"
        self.kept: dict[str, dict[str, Any]] = read_json(self.path)["tasks"] if self.path.exists() else {}

    def finished(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether a task is there. Raises CheckpointError if it is, but with other settings."""
        if name not in self.kept:
            return False
        wrong = differences(self.kept[name]["settings"], settings)
        if wrong:
            raise CheckpointError(
                f"`{self.path}` must hold task {name} with these settings (--force replaces it): {wrong}"
            )
        return True

    def add(self, name: str, settings: dict[str, Any], records: Sequence[Record]) -> None:
        """Write a task's records and the table of all."""
        made = machine.description()
        made["command"] = made["command"].replace("-m benchmarks", "-m benchmarks.arrival", 1)
        self.kept[name] = {"title": self.tasks[name].title, "settings": settings, "made": made, "records": records}
        write_compact(self.path, {"tasks": {key: self.kept[key] for key in self.tasks if key in self.kept}})
        self.kept = read_json(self.path)["tasks"]
        self.write_table()

    def write_table(self) -> Path:
        """The table of what is there."""
        text, path = self.table(), self.folder / "table.md"
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return path

    def table(self) -> str:
        """All tasks that are there."""
        return HEAD + "".join(self.section(name) for name in self.tasks if name in self.kept)

    def section(self, name: str) -> str:
        """One task: its title, where its numbers come from, its table."""
        kept = self.kept[name]
        made, versions = kept["made"]["machine"], kept["made"]["versions"]
        origin = (
            f"`{kept['made']['command']}` ({made['cpu']}, torch {versions['torch']}, {kept['made']['git_revision']})"
        )
        return f"\n## {name}. {kept['title']}\n\n{origin}\n\n{self.tasks[name].table(kept['records'])}"
