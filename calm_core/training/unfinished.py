"""Unfinished trainings below a folder of checkpoints: what a new one goes on from, and what it differs in from others.

What changes the result names a job's folder, so a slip of the keyboard begins anew, and leaves behind what was done.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from calm_core.config.base import as_written
from calm_core.errors import CalmError, ConfigError
from calm_core.shown import by_dotted_name
from calm_core.store import lock, storage
from calm_core.training.job import Job, TrainingSpec
from calm_core.weights.initial import INITIAL_WEIGHTS
from calm_core.weights.teacher import TEACHER

_FEW = 4
"""A training that differs in more is another one, and not one that somebody means to go on with."""
_NAMED = 8
_AT_A_TIME = 16


@dataclass(frozen=True)
class Unfinished:
    """A training that has a checkpoint, and is not the one that is asked for.

    Attributes:
        job: Where it lies.
        differing: What it has there, and what is asked for, of each setting and input that differs.
        same_output: Whether it writes to the place that is asked for.
    """

    job: Job
    differing: Mapping[str, tuple[Any, Any]]
    same_output: bool

    def __str__(self) -> str:
        told = [
            f"another {name}"
            if name in ("dataset", "autoencoder", TEACHER)
            else "other initial weights"
            if name == INITIAL_WEIGHTS
            else f"{name} {as_written(a)} there, {as_written(b)} here"
            for name, (a, b) in sorted(self.differing.items())
        ]
        more = len(told) - _NAMED
        return f"the unfinished training in {self.job.uri} differs: {', '.join(told[:_NAMED])}" + (
            f" and {more} more" if more > 0 else ""
        )


def how_it_begins(spec: TrainingSpec, job: Job, checkpoint_root: str, resume: bool) -> str:
    """What to say of a training that begins anew although it looks like one that is unfinished; empty for nothing.

    Args:
        spec: What is asked for.
        job: Its job.
        checkpoint_root: Folder of all jobs.
        resume: Whether it shall not begin anew.

    Raises:
        ConfigError: It would, and shall not.
    """
    if job.steps():
        return ""
    nearest = min(
        _unfinished(spec, checkpoint_root),
        key=lambda other: (not other.same_output, len(other.differing), other.job.uri),
        default=None,
    )
    if resume and nearest is None:
        raise ConfigError(
            f"resume=True: there is no unfinished training of this kind in {checkpoint_root}; leave it out to begin one"
        )
    if resume:
        raise ConfigError(f"resume=True: {nearest}; give the same, or leave it out to begin anew")
    if nearest is None or len(nearest.differing) > _FEW or lock.may_be_held(nearest.job.uri):
        return ""
    return f"begins anew: {nearest}"


def _unfinished(spec: TrainingSpec, checkpoint_root: str) -> list[Unfinished]:
    jobs_name = re.compile(rf"{spec.kind}-[0-9a-f]{{16}}")
    names = [name for name in storage.names_in(checkpoint_root) if jobs_name.fullmatch(name)]
    jobs = [Job(storage.join(checkpoint_root, name)) for name in names]

    def compared(other: Job) -> Unfinished | None:
        with suppress(CalmError):  # what cannot be read is nothing to go on with
            _, found = Job.read(other.spec_uri)
            if found.kind == spec.kind and other.steps():
                same_output = storage.real(found.output_uri) == storage.real(spec.output_uri)
                return Unfinished(other, _differing(found, spec), same_output)
        return None

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return [found for found in pool.map(compared, jobs) if found]


def _differing(there: TrainingSpec, here: TrainingSpec) -> dict[str, tuple[Any, Any]]:
    there_values, here_values = (dict(by_dotted_name(spec.trained["config"])) | spec.parents for spec in (there, here))
    names = there_values.keys() | here_values.keys()
    found = {name: (there_values.get(name), here_values.get(name)) for name in names}
    return {name: (a, b) for name, (a, b) in found.items() if a != b}
