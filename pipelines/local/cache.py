"""Kubeflow's local cache, of which no answer is believed whose artifacts are not whole."""

from collections.abc import Iterable
from typing import Any

from kfp import dsl
from kfp.local import cache

from calm_core.errors import ArtifactError, CalmError
from calm_core.store.artifact import Artifact


class CheckedCache(cache.LocalCache):  # type: ignore[misc]  # kfp is untyped
    """A cache that has forgotten each task whose outputs are damaged, missing or replaced.

    Such a task runs again, and so do those behind it, whose input is then another one: a run repairs what it finds
    damaged. For this all files of the tasks that a run asks for are read; nobody else would read them in a run that
    comes from the cache, and it would hand on what it has not looked at.
    """

    def get(self, key: str) -> dict[str, Any] | None:
        """The outputs of a task, if they are whole."""
        try:
            outputs: dict[str, Any] | None = super().get(key)
            for artifact in _artifacts(outputs.values() if outputs else ()):
                check(artifact)
        except CalmError as error:
            print(f"cache: not taken: {error}", flush=True)
            return None
        except Exception as error:  # whatever comes of reading a damaged entry
            print(f"cache: entry {key} is damaged ({error!r})", flush=True)
            return None
        return outputs


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


def _artifacts(outputs: Iterable[Any]) -> Iterable[dsl.Artifact]:
    for output in outputs:
        for artifact in output if isinstance(output, list) else [output]:
            if isinstance(artifact, dsl.Artifact):
                yield artifact
