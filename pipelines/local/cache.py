"""Kubeflow's local cache, by content: what a task has read is known by its digest, and what it has made is checked."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.local import cache

from calm_core.errors import ArtifactError, CalmError
from calm_core.store.artifact import Artifact

_CHECKSUM = "calm.checksum"  # name of an output that no task has
_HOME = "calm-home:"
"""How a key names the home that the cache lies in."""
_HOME_NAME = "home"  # of the file that says where the entries believe their home to be


class CheckedCache(cache.LocalCache):  # type: ignore[misc]  # kfp is untyped
    """A cache that has forgotten each task whose outputs are damaged, missing or replaced.

    Such a task runs again, so a run repairs what it finds damaged. For this all files of the tasks that a run asks for
    are read; nobody else would read them in a run that comes from the cache, and it would hand on what nobody has
    looked at.

    Its folder lies in a home, which may be moved or copied as a whole: entries hold absolute places, and follow it.

    Args:
        cache_root: The cache's folder.

    Attributes:
        handed_on: The outputs, by name, of each task that has been answered or done in this process.
    """

    def __init__(self, cache_root: str) -> None:
        super().__init__(cache_root)
        self.handed_on: list[dict[str, Any]] = []
        self._home = f"{Path(cache_root).parent}/"
        noted = Path(cache_root, _HOME_NAME)
        before = noted.read_text(encoding="utf-8") if noted.exists() else self._home
        if before != self._home:
            old, new = (json.dumps(home).encode().removesuffix(b'"') for home in (before, self._home))
            for entry in Path(cache_root).glob("*.json"):
                entry.write_bytes(entry.read_bytes().replace(old, new))
        noted.write_text(self._home, encoding="utf-8")

    def compute_key(self, *arguments: Any, **named: Any) -> str:
        """The key of a task. An artifact takes part by its digest, so the same one at another place is the same; what
        else lies in the home by its place there.

        What stands behind a repaired task comes from the cache then, since it would read the same bytes.
        """
        named["arguments"] = {name: self._by_content(value) for name, value in named["arguments"].items()}
        return str(super().compute_key(*arguments, **named))

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        """Keep the outputs of a task."""
        self.handed_on.append(outputs)
        super().put(key, outputs | {_CHECKSUM: self._checksum(outputs)})

    def get(self, key: str) -> dict[str, Any] | None:
        """The outputs of a task, if they are whole."""
        try:
            outputs: dict[str, Any] | None = super().get(key)
            if outputs is None:
                return None
            if outputs.keys() == {_CHECKSUM}:  # earlier versions kept those of tasks that had been ended
                raise ArtifactError(f"entry {key} has no outputs")
            if outputs.pop(_CHECKSUM) != self._checksum(outputs):
                raise ArtifactError(f"entry {key} is damaged")
            for artifact in _artifacts(outputs.values()):
                check(artifact)
        except CalmError as error:
            print(f"cache: not taken: {error}", flush=True)
            return None
        except Exception as error:  # whatever comes of reading a damaged entry
            print(f"cache: entry {key} is damaged ({error!r})", flush=True)
            return None
        self.handed_on.append(outputs)
        return outputs

    def _by_content(self, value: Any) -> Any:
        match value:
            case str():
                return value.replace(self._home, _HOME)
            case list():
                return [self._by_content(item) for item in value]
            case dict():
                return {name: self._by_content(item) for name, item in value.items()}
            case dsl.Artifact(metadata={"digest": digest}):
                return {"artifact": digest}
            case dsl.Artifact():
                return {"artifact": self._by_content(value.uri), "metadata": value.metadata}
            case _:
                return value

    def _checksum(self, outputs: dict[str, Any]) -> str:
        return self.compute_key(component_name="", image="", full_command=[], arguments=outputs)


def use_checked_cache() -> None:
    """Let Kubeflow's local runner use it, from the next session on."""
    cache.LocalCache = CheckedCache


def check(output: dsl.Artifact) -> None:
    """Check an output of a task: that it is what the task has made, and whole.

    Raises:
        CalmError: It is not.
    """
    if isinstance(output, dsl.Metrics | dsl.HTML | dsl.Markdown):  # a file for display
        return
    artifact = Artifact.of_any_kind(output.uri)
    if artifact.digest != output.metadata.get("digest"):
        raise ArtifactError(f"{output.uri}: is another {artifact.manifest.kind} than the task has made")
    artifact.check_files()


def _artifacts(outputs: Iterable[Any]) -> Iterable[dsl.Artifact]:
    for output in outputs:
        for artifact in output if isinstance(output, list) else [output]:
            if isinstance(artifact, dsl.Artifact):
                yield artifact
