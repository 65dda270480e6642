"""Kubeflow's local cache, by content: what a task has read is known by its digest, and what it has made is checked."""

from collections.abc import Iterable
from typing import Any

from kfp import dsl
from kfp.local import cache

from calm_core.errors import ArtifactError, CalmError
from calm_core.store.artifact import Artifact

_CHECKSUM = "calm.checksum"  # name of an output that no task has


class CheckedCache(cache.LocalCache):  # type: ignore[misc]  # kfp is untyped
    """A cache that has forgotten each task whose outputs are damaged, missing or replaced.

    Such a task runs again, so a run repairs what it finds damaged. For this all files of the tasks that a run asks for
    are read; nobody else would read them in a run that comes from the cache, and it would hand on what nobody has
    looked at.

    Attributes:
        handed_on: The outputs, by name, of each task that has been answered or done in this process.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.handed_on: list[dict[str, Any]] = []

    def compute_key(self, *arguments: Any, **named: Any) -> str:
        """The key of a task. An artifact takes part by its digest, so the same one at another place is the same.

        What stands behind a repaired task comes from the cache then, since it would read the same bytes.
        """
        named["arguments"] = {name: _by_content(value) for name, value in named["arguments"].items()}
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
    if isinstance(output, dsl.Metrics):  # a file of numbers for display
        return
    artifact = Artifact.of_any_kind(output.uri)
    if artifact.digest != output.metadata.get("digest"):
        raise ArtifactError(f"{output.uri}: is another {artifact.manifest.kind} than the task has made")
    artifact.check_files()


def _by_content(value: Any) -> Any:
    match value:
        case list():
            return [_by_content(item) for item in value]
        case dsl.Artifact(metadata={"digest": digest}):
            return {"artifact": digest}
        case _:
            return value


def _artifacts(outputs: Iterable[Any]) -> Iterable[dsl.Artifact]:
    for output in outputs:
        for artifact in output if isinstance(output, list) else [output]:
            if isinstance(artifact, dsl.Artifact):
                yield artifact
