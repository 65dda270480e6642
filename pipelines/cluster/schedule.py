"""Runs by the clock: Kubeflow's recurring runs of our pipelines, each with one name and one form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kfp_server_api import (
    RecurringRunMode,
    V2beta1CronSchedule,
    V2beta1PipelineVersionReference,
    V2beta1RecurringRun,
    V2beta1Trigger,
)

from calm_core.errors import CalmError, ConfigError
from calm_core.shown import shortened
from pipelines.cluster.client import Cluster
from pipelines.cluster.connection import Refused
from pipelines.cluster.submit import (
    SERVICE_ACCOUNT,
    Package,
    experiment_id,
    find_experiment,
    named,
    required,
    runtime_config,
    upload,
)

_FIELDS = 6
_LONGEST_NAME = 100
_RUNS_STAY = "ORPHAN"
"""What becomes of the runs of a schedule that is deleted: Kubernetes would delete those at work with it."""


@dataclass(frozen=True)
class Schedule:
    """A schedule, as Kubeflow tells of it."""

    told: V2beta1RecurringRun

    @property
    def id(self) -> str:
        return str(self.told.recurring_run_id or "")

    @property
    def name(self) -> str:
        return str(self.told.display_name or "")

    @property
    def cron(self) -> str:
        schedule = self.told.trigger and self.told.trigger.cron_schedule
        return str((schedule and schedule.cron) or "")

    @property
    def is_paused(self) -> bool:
        return str(self.told.status) == "DISABLED"

    @property
    def created(self) -> datetime | None:
        created: datetime | None = self.told.created_at
        return created

    @property
    def pipeline_id(self) -> str:
        source = self.told.pipeline_version_reference
        return str((source and source.pipeline_id) or "")

    @property
    def _form(self) -> tuple[Any, ...]:
        """All that makes it this schedule and no other."""
        told, config, source = self.told, self.told.runtime_config, self.told.pipeline_version_reference
        return (
            self.cron,
            self.pipeline_id,
            (source and source.pipeline_version_id) or "",
            (config and config.parameters) or {},
            (config and config.pipeline_root) or "",
            str(told.max_concurrency or ""),
            bool(told.no_catchup),
        )

    def is_like(self, other: V2beta1RecurringRun) -> bool:
        """Whether it does what another one would."""
        return self._form == Schedule(other)._form


def checked_cron(cron: str) -> str:
    """When a schedule runs, as Kubeflow takes it: six fields, seconds first, or @daily and the like.

    Raises:
        ConfigError: It is none. Kubeflow would take five fields for six that lack the last one.
    """
    fields = cron.split()
    if len(fields) == _FIELDS or (fields and fields[0].startswith("@")):
        return " ".join(fields)
    hint = f"; did you mean '0 {' '.join(fields)}'?" if len(fields) == _FIELDS - 1 else ""
    raise ConfigError(
        f"--cron: {shortened(cron)!r} has {len(fields)} fields, Kubeflow's six: second minute hour day month "
        f"weekday{hint}"
    )


def create(
    cluster: Cluster, package: Package, name: str, cron: str, values: Mapping[str, Any], root: str
) -> tuple[Schedule, bool]:
    """Have a schedule of this name that runs the newest version of a pipeline; one of another form is replaced.

    It names no version of the pipeline, makes up for one run at most of those it missed, and starts none while one is
    at work.
    A schedule that was paused stays so.

    Args:
        cluster: Where.
        package: The pipeline, which is uploaded unless it is there.
        name: Of the schedule.
        cron: As `checked_cron` gives it.
        values, root: As of a single run.

    Returns:
        It, and whether it is new.

    Raises:
        CalmError: Kubeflow refuses it, or somebody else made one of this name at the same time.
    """
    if not name or len(name) > _LONGEST_NAME:
        raise ConfigError(f"--name: {shortened(name)!r} is no name of a schedule; give 1 to {_LONGEST_NAME} characters")
    pipeline_id, _ = upload(cluster, package)
    experiment = experiment_id(cluster)
    before = _called(cluster, experiment, name)
    wanted = V2beta1RecurringRun(
        display_name=name,
        experiment_id=experiment,
        pipeline_version_reference=V2beta1PipelineVersionReference(pipeline_id=pipeline_id),
        runtime_config=runtime_config(values, root),
        service_account=SERVICE_ACCOUNT,
        max_concurrency="1",
        no_catchup=True,
        mode=RecurringRunMode.DISABLE if before and before[-1].is_paused else RecurringRunMode.ENABLE,
        trigger=V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=cron)),
    )
    if before and before[-1].is_like(wanted):
        _delete(cluster, before[:-1])
        return before[-1], False
    made = cluster.call(
        "creating the schedule",
        cluster.kfp.recurring_runs.recurring_run_service_create_recurring_run,
        recurring_run=wanted,
    )
    made_id = required(cluster, made.recurring_run_id)
    # The newest one stands, whoever made it: two who create at once agree on that.
    *others, newest = _called(cluster, experiment, name) or [Schedule(made)]
    _delete(cluster, others)
    if newest.id != made_id and not newest.is_like(wanted):
        raise CalmError(
            f"{name}: somebody else has created another schedule of this name at the same time, which stands; look at "
            "`calm schedule list`, and run the same command again if yours shall",
            can_pass=True,
        )
    return newest, True


def schedules(cluster: Cluster) -> Iterator[Schedule]:
    """All schedules of ours, the newest first.

    Raises:
        CalmError: They cannot be read.
    """
    if experiment := find_experiment(cluster):
        yield from _listed(cluster, experiment, sort_by="created_at desc")


def pause(cluster: Cluster, name: str) -> None:
    """Let a schedule start no more runs.

    Raises:
        CalmError: There is none of this name, or it may not be changed.
    """
    for each in _require(cluster, name):
        cluster.call("pausing it", cluster.kfp.recurring_runs.recurring_run_service_disable_recurring_run, each.id)


def resume(cluster: Cluster, name: str) -> None:
    """Let a schedule start runs again, the next one at its time.

    Raises:
        CalmError: There is none of this name, or it may not be changed.
    """
    cluster.call(
        "resuming it",
        cluster.kfp.recurring_runs.recurring_run_service_enable_recurring_run,
        _require(cluster, name)[-1].id,
    )


def delete(cluster: Cluster, name: str) -> None:
    """Delete a schedule; its runs stay, those at work go on.

    Raises:
        CalmError: There is none of this name, or it may not be deleted.
    """
    _delete(cluster, _require(cluster, name))


def _require(cluster: Cluster, name: str) -> list[Schedule]:
    experiment = find_experiment(cluster)
    if found := _called(cluster, experiment, name) if experiment else []:
        return found
    raise CalmError(f"{name}: there is no schedule of this name; `calm schedule list` lists them")


def _called(cluster: Cluster, experiment: str, name: str) -> list[Schedule]:
    """Those of a name, the newest last; more than one only where two were created at once."""
    found = [each for each in _listed(cluster, experiment, filter=named(name)) if each.name == name]
    return sorted(found, key=lambda each: (each.created.timestamp() if each.created else 0.0, each.id))


def _listed(cluster: Cluster, experiment: str, **options: Any) -> Iterator[Schedule]:
    list_ = cluster.kfp.recurring_runs.recurring_run_service_list_recurring_runs
    for told in cluster.pages("listing schedules", list_, "recurring_runs", experiment_id=experiment, **options):
        yield Schedule(told)


def _delete(cluster: Cluster, those: list[Schedule]) -> None:
    for each in those:
        try:
            cluster.call(
                "deleting it",
                cluster.kfp.recurring_runs.recurring_run_service_delete_recurring_run,
                each.id,
                propagation_policy=_RUNS_STAY,
            )
        except Refused as error:
            if error.status != 404:  # somebody else was as quick
                raise
