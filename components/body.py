"""What the components' bodies have in common."""

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from kfp import dsl

if TYPE_CHECKING:
    from calm_core.config import Section
    from calm_core.store.artifact import Artifact
    from calm_core.store.facts import Facts

MOST_SHOWN_BYTES = 8 << 20
"""Of a page: Kubeflow's user interface loads it whole. Ours have some 200 KB."""
_TOO_LARGE = b"This is too large to be shown here; it lies in the artifact beside it.\n"

SectionT = TypeVar("SectionT", bound="Section")


@contextmanager
def stage(code_version: str) -> Iterator[None]:
    """Run a calm_core stage as the task of a pipeline.

    The code version of the task's cache key is the one that the stage writes into its manifest. A `CalmError` ends the
    task with its one line instead of a traceback, and with its exit code; a fault of ours with its traceback, without
    secrets of URLs.

    Args:
        code_version: The digest of the installed library on one machine; empty in a cluster, where the image takes part
            in the cache key and brings its own.

    Raises:
        SystemExit: The stage failed.
    """
    from calm_core.errors import EXIT_FAILED, CalmError
    from calm_core.shown import lines_of
    from calm_core.store.code_version import CODE_VERSION_VARIABLE
    from components.mlflow_environment import use_own_mlflow

    use_own_mlflow()
    if code_version:
        os.environ[CODE_VERSION_VARIABLE] = code_version
    try:
        yield
    except CalmError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except Exception:  # a fault of ours: what the libraries say of URLs is not for a pod's log
        sys.stderr.write(lines_of(traceback.format_exc()))
        raise SystemExit(EXIT_FAILED) from None


def settings(section_type: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """A section of the settings, from a parameter that `pipelines.arguments` has made.

    Raises:
        ConfigError: One line that names the first bad key.
    """
    from calm_core.config import parse_section
    from components.quoting import unquoted

    return parse_section(section_type, unquoted(values))


def place_of(output: dsl.Artifact) -> str:
    """Where a stage writes an output, from where it is read: not under its URI, which Kubeflow's launcher downloads
    into every pod that the output is an input of. There lies what `describe` writes."""
    from calm_core.store.artifact import place_beside

    return place_beside(output.uri)


def root_of(named: str, output: dsl.Artifact, name: str) -> str:
    """A folder that all runs share.

    Args:
        named: The one that the settings name; empty for one where Kubeflow keeps all that pipelines have made, which
            is what the tasks of a namespace may write to.
        output: Any output of the task, which Kubeflow has placed at ``<root>/<pipeline>/<run>/<task>/...``.
        name: What the folder is for.

    Raises:
        ConfigError: None is named, and the output lies at a place of another form.
    """
    import re

    from calm_core.errors import ConfigError

    if named:
        return named
    found = re.match(r"(.+?)/[^/]+/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/", output.uri)
    if not found:
        raise ConfigError(f"{name}_root: is empty, and {output.uri} is no place of Kubeflow's; name a folder for it")
    return f"{found[1]}/calm/{name}s"


def describe(
    output: dsl.Artifact, artifact: "Artifact[Facts]", numbers: Mapping[str, float | str] | None = None
) -> None:
    """Let an output stand for the artifact that a stage has written to `place_of` it, and show the artifact's digest
    and headline numbers where Kubeflow shows the output."""
    from calm_core.store.artifact import refer

    refer(output.uri)
    output.metadata.update({"digest": artifact.digest, **_strict(numbers or {})})


def log_metrics(metrics: dsl.Metrics, numbers: Mapping[str, Any]) -> None:
    """Log numbers, and write them to the output's file: Kubeflow's local cache misses an output without a file.

    What is no finite number is left out: JSON has none, and Kubeflow's launcher would fail the finished task.
    """
    import json

    logged = {name: value for name, value in _strict(numbers).items() if isinstance(value, int | float)}
    for name, value in logged.items():
        metrics.log_metric(name, value)
    show(metrics, json.dumps(logged, indent=1, allow_nan=False) + "\n")


def show(output: dsl.Artifact, content: str | bytes) -> None:
    """Write what Kubeflow shows of an output (`dsl.HTML`, `dsl.Markdown`) to its file.

    Content that is larger than its pages take is left to the artifact that holds it.
    """
    from pathlib import Path

    data = content.encode() if isinstance(content, str) else content
    path = Path(output.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if len(data) <= MOST_SHOWN_BYTES else _TOO_LARGE)


def _strict(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The values that strict JSON has."""
    import math

    return {name: value for name, value in numbers.items() if not isinstance(value, float) or math.isfinite(value)}
