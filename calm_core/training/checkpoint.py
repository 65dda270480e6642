"""Checkpoints of a training run, in a folder named by what is trained.

A retried or resubmitted task finds its own work. A checkpoint counts once its completion marker is there.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist

from calm_core.store import storage

_MARKER = "complete"


class Checkpointer:
    """Saves and finds checkpoints of a DeepSpeed engine. Every rank calls every method.

    DeepSpeed reads and writes local folders only, so those of an object store go through a temporary one on each node.

    Args:
        uri: Folder of this training run, on any fsspec URL that all nodes see.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._is_local = storage.is_local(uri)
        self._folder = Path(storage.filesystem_of(uri)[1]) if self._is_local else _temporary_folder()

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> None:
        """Save model, optimiser and schedule, and the loop's own JSON state; older checkpoints are removed after."""
        tag = f"step-{step:08d}"
        engine.save_checkpoint(str(self._folder), tag=tag, save_latest=False)
        dist.barrier()
        if not self._is_local and _is_first_on_node():
            for file in _files_in(self._folder / tag):
                storage.copy(str(file), storage.join(self._uri, file.relative_to(self._folder).as_posix()))
            shutil.rmtree(self._folder / tag)
        dist.barrier()
        if dist.get_rank() == 0:
            storage.write(storage.join(self._uri, tag, _MARKER), json.dumps(state).encode())
            for older in self._tags():
                if older != tag:
                    storage.remove_folder(storage.join(self._uri, older))
        dist.barrier()

    def load_latest(self, engine: Any) -> dict[str, Any] | None:
        """Restore the latest complete checkpoint and return the loop's state; None when there is none."""
        latest: list[Any] = [None, None]
        if dist.get_rank() == 0:
            markers = {tag: storage.join(self._uri, tag, _MARKER) for tag in self._tags()}
            if complete := [tag for tag, marker in markers.items() if storage.exists(marker)]:
                latest = [complete[-1], json.loads(storage.read(markers[complete[-1]]))]
        dist.broadcast_object_list(latest)
        tag, state = latest
        if tag is None:
            return None
        if not self._is_local and _is_first_on_node():
            for uri in storage.files_below(storage.join(self._uri, tag)):
                storage.copy(uri, str(self._folder / tag / uri.rpartition(f"/{tag}/")[2]))
        dist.barrier()
        engine.load_checkpoint(str(self._folder), tag=tag)
        dist.barrier()
        if not self._is_local and _is_first_on_node():
            shutil.rmtree(self._folder / tag)
        return dict(state)

    def _tags(self) -> list[str]:
        return [name for name in storage.names_in(self._uri) if name.startswith("step-")]

    def close(self) -> None:
        """Remove what is left on this node; the checkpoints themselves stay until the job is removed."""
        if not self._is_local and _is_first_on_node():
            shutil.rmtree(self._folder, ignore_errors=True)


def _temporary_folder() -> Path:
    """A new folder, under the same name on every node."""
    name: list[Any] = [tempfile.mkdtemp(prefix="calm-checkpoints-") if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(name)
    return Path(name[0])


def _is_first_on_node() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]
