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

SectionT = TypeVar("SectionT", bound="Section")


@contextmanager
def stage(code_version: str) -> Iterator[None]:
    """Run a calm_core stage as the task of a pipeline.

    The code version of the task's cache key is the one that the stage writes into its manifest. A `CalmError` ends the
    task with its one line instead of a traceback, and with its exit code; a fault of ours with its traceback, without
    secrets of URLs.

    Args:
        code_version: The image digest in a cluster, the digest of the installed library on one machine.

    Raises:
        SystemExit: The stage failed.
    """
    from calm_core.errors import EXIT_FAILED, CalmError
    from calm_core.shown import lines_of
    from calm_core.store.code_version import CODE_VERSION_VARIABLE

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


def describe(
    output: dsl.Artifact, artifact: "Artifact[Facts]", numbers: Mapping[str, float | str] | None = None
) -> None:
    """Show an artifact's digest and headline numbers where Kubeflow shows the output."""
    output.metadata.update({"digest": artifact.digest, **(numbers or {})})


def log_metrics(metrics: dsl.Metrics, numbers: Mapping[str, float]) -> None:
    """Log numbers, and write them to the output's file: Kubeflow's local cache misses an output without a file."""
    import json
    from pathlib import Path

    for name, value in numbers.items():
        metrics.log_metric(name, value)
    path = Path(metrics.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(numbers), indent=1) + "\n")
