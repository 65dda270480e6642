"""What the runs of a home have left behind: their folders below .calm/logs, read without believing them."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psutil

from calm_core.store.artifact import MANIFEST_NAME
from calm_core.telemetry.progress import ProgressEvent, parse
from pipelines.local.home import Home
from pipelines.local.run import ENDED_NAME, LOG_NAME, OUTPUTS_NAME, PROGRESS_NAME, REQUEST_NAME

Ending = Literal["done", "failed", "stopped", "running", "unknown"]


@dataclass(frozen=True)
class PastRun:
    """A run of a home. What is missing or damaged in its folder is empty here.

    Attributes:
        number: Counted from the oldest run that is still there.
        folder: With its log.
        home: Where it ran, or where that has been moved to.
        next_name: Name of the run after it, empty where there is none.
    """

    number: int
    folder: Path
    home: Home
    next_name: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder / LOG_NAME

    @property
    def started(self) -> str:
        """When, in local time: ``2026-11-25 19:17:47``; empty if its folder has another name than a run gives it."""
        digits = _moment(self.name)
        day, time = (digits[:4], digits[4:6], digits[6:8]), (digits[8:10], digits[10:12], digits[12:])
        return f"{'-'.join(day)} {':'.join(time)}" if digits else ""

    @cached_property
    def request(self) -> dict[str, Any]:
        """What the run was asked for: `arguments` of the pipeline, and `asked` of the command."""
        return _read(self.folder / REQUEST_NAME)

    @property
    def asked(self) -> dict[str, Any]:
        """The `command`, its `profile`, and the settings that it `changed` there; earlier versions noted none."""
        asked = self.request.get("asked")
        return asked if isinstance(asked, dict) else {}

    @cached_property
    def outputs(self) -> dict[str, str]:
        """URIs of its artifacts by the names of the pipeline's outputs: where they are since the home was moved."""
        root = self.request.get("pipeline_root")
        return {
            name: f"{self.home.pipeline_root}{uri.removeprefix(root)}"
            if isinstance(root, str) and uri.startswith(f"{root}/")
            else uri
            for name, uri in _read(self.folder / OUTPUTS_NAME).items()
            if isinstance(uri, str)
        }

    @property
    def artifacts(self) -> dict[str, str]:
        """URIs of its outputs; of a run that has not finished, of what it had made, by where that lies."""
        if self.outputs:
            return self.outputs
        # A home has one run at a time, so what was begun before the next one is of this one.
        begin, end = _moment(self.name), _moment(self.next_name) or "9"
        folders = [f for f in self.home.pipeline_root.glob("*") if begin and begin <= _moment(f.name) < end]
        manifests = [manifest for folder in folders for manifest in sorted(folder.glob(f"*/*/{MANIFEST_NAME}"))]
        return {"/".join(manifest.parts[-3:-1]): str(manifest.parent) for manifest in manifests}

    @cached_property
    def events(self) -> list[ProgressEvent]:
        """What its stages have said."""
        found = []
        try:
            lines = (self.folder / PROGRESS_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        for line in lines:
            try:
                found.append(parse(line))
            except (ValueError, RecursionError):  # half a line, or one of another version
                continue
        return found

    @cached_property
    def ending(self) -> Ending:
        """How it ended; unknown where it was killed, or an earlier version noted no more."""
        match _read(self.folder / ENDED_NAME).get("state"):
            case "done" | "failed" | "stopped" as state:
                return state  # type: ignore[no-any-return] # one of these
        if self.outputs:
            return "done"
        if self._is_at_work:
            return "running"
        return "failed" if any(event.state == "failed" for event in self.events) else "unknown"

    @property
    def seconds(self) -> float | None:
        """How long it took, if it has ended and says so."""
        started, ended = self.request.get("started"), _read(self.folder / ENDED_NAME).get("time")
        if isinstance(started, int | float) and isinstance(ended, int | float):
            return max(0.0, ended - started)
        return None

    @property
    def _is_at_work(self) -> bool:
        number, started = self.request.get("process"), self.request.get("process_started")
        try:
            return isinstance(number, int) and abs(psutil.Process(number).create_time() - float(started or 0)) < 1
        except (psutil.Error, ValueError, TypeError, OverflowError):
            return False


def past_runs(home: Home) -> list[PastRun]:
    """The runs of a home, the oldest first."""
    folders = sorted(folder for folder in home.logs.glob("run-*") if folder.is_dir())
    later = [*(folder.name for folder in folders[1:]), ""]
    return [PastRun(i, folder, home, then) for i, (folder, then) in enumerate(zip(folders, later, strict=False), 1)]


def _moment(name: str) -> str:
    """The 14 digits of the day and time in a name, e.g. calm-train-2026-11-25-19-17-48-611624; empty without them."""
    found = re.match(r"\D*" + r"(\d{4})-?" + r"(\d\d)-?" * 5, name, re.ASCII)
    return "".join(found.groups()) if found else ""


def _read(path: Path) -> dict[str, Any]:
    """An object of a JSON file; empty if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
