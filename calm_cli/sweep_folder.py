"""The folder of a sweep: its results, as a table, for machines, and as a page."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from calm_cli.tables import show_table
from calm_core.errors import ConfigError
from calm_core.shown import listed
from calm_core.store.lock import is_lock
from pipelines.sweeps.page import page, table
from pipelines.sweeps.plan import Plan
from pipelines.sweeps.results import Result, as_csv, as_json, pooled, run_rows

CSV_NAME, JSON_NAME, PAGE_NAME = "results.csv", "results.json", "results.html"
RECORD_NAME = "mlflow-run"
"""Of the file with the id of an MLflow run, in the folder of what it is about."""


class SweepFolder:
    """What a sweep has found so far.

    Args:
        plan: What is run.
        path: Of the folder.

    Attributes:
        page: Path of the page.
        results: Of the runs that have ended, by name.
        labels: Of all runs, for people, by name.

    Raises:
        ConfigError: The folder is a file, or holds what is no sweep's.
    """

    def __init__(self, plan: Plan, path: Path) -> None:
        self.plan, self.path, self.page = plan, path, path / PAGE_NAME
        self.results: dict[str, Result] = {}
        of_run = {run.name: each for each in plan.candidates for rung in each.rungs for run in rung}
        self.labels = {run.name: f"{number} {of_run[run.name].label(run)}" for number, run in enumerate(plan.runs, 1)}
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--output: {path} is a file; name a folder")
        others = [name for name in sorted(p.name for p in path.iterdir()) if not is_lock(name)] if path.exists() else []
        if others and not {RECORD_NAME, JSON_NAME} & {*others}:
            raise ConfigError(
                f"--output: {path} holds other files ({listed(others, 3)}); name a new or an empty folder"
            )

    @property
    def scores(self) -> Mapping[str, float | None]:
        """BrierLM by the run's name; None where it failed."""
        return {name: each.brierlm.value if each.brierlm else None for name, each in self.results.items()}

    @property
    def failed(self) -> int:
        """How many runs have."""
        return sum(score is None for score in self.scores.values())

    def write(self) -> dict[str, str]:
        """Write the results, and return their texts by the file's name; equal results give equal bytes."""
        self.path.mkdir(parents=True, exist_ok=True)
        texts = {
            CSV_NAME: as_csv(list(run_rows(self.plan, self.results))),
            JSON_NAME: as_json(self.plan, self.results),
            PAGE_NAME: page(f"Sweep {self.path.name}", self.plan, pooled(self.plan, self.results)),
        }
        for name, text in texts.items():
            (self.path / name).write_bytes(text.encode())
        return texts

    def show(self, console: Console) -> None:
        """Print the table."""
        heading, lines = table(self.plan, pooled(self.plan, self.results))
        show_table(heading, lines, console, right=range(1, len(heading)))
