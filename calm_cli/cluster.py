"""What the commands for a cluster share: where it is, a run's board, and a run's logs."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from calm_cli.board import Board
from calm_cli.display import display_for
from calm_cli.screen import Screen
from calm_core.errors import CalmError, Stopped
from calm_core.telemetry.progress import ProgressEvent

if TYPE_CHECKING:
    from calm_core.config import Config
    from pipelines.cluster.client import Cluster
    from pipelines.cluster.runs import ClusterRun, StageState

HostOption = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="URL",
        help="Address of Kubeflow Pipelines. [default: $KF_PIPELINES_ENDPOINT, or this pod's or kubectl's cluster]",
        show_default=False,
    ),
]
NamespaceOption = Annotated[
    str,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="Where runs are, if Kubeflow has users. [default: the SDK's, or this pod's]",
        show_default=False,
    ),
]
PipelineRootOption = Annotated[
    str,
    typer.Option(
        "--pipeline-root",
        metavar="URL",
        help="Folder for artifacts, plans and checkpoints, which pods may write to, e.g. s3://bucket/calm. [default: "
        "Kubeflow's own setting]",
        show_default=False,
    ),
]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source", metavar="URL", help="Text that pods can read, e.g. 's3://bucket/texts/*.jsonl'; repeatable."
    ),
]

_POLL_SECONDS, _LONGEST_POLL_SECONDS = 3.0, 60.0
_POLL_SHARE = 0.01
"""Of the time that has been waited: answers of 1 MiB are asked for less often in a run of days."""
_REDRAW_SECONDS = 0.25
_PATIENCE_SECONDS = 900.0
"""How long a cluster may not answer while a run of it is watched."""


def warn_of_partitions(config: "Config") -> None:
    """Tell of a limit of Kubeflow that shows in the middle of a run alone."""
    from pipelines.cluster.submit import FEW_PARTITIONS, FEW_SOURCE_BYTES

    partitions, named = config.data.partitions, sum(map(len, config.data.sources))
    if partitions > FEW_PARTITIONS or partitions * named > FEW_SOURCE_BYTES:
        Screen(stderr=True, soft_wrap=True).print(
            f"data.partitions: {partitions} may be more than this Kubeflow keeps track of (docs/cluster.md, large "
            f"runs); {FEW_PARTITIONS} are not, with sources named by patterns",
            style="yellow",
        )


def wait_for(cluster: "Cluster", run_id: str, stages: Sequence[str], console: Console) -> "ClusterRun":
    """Show a run until it ends; the run goes on however this function ends.

    Raises:
        CalmError: The cluster has not answered for long, or lets nobody in any more.
        Stopped: This process was asked to end.
    """
    board = Board(stages, time.time())
    to_stop = f"the run goes on in the cluster; to end it: calm runs stop {run_id} {cluster.options}"
    try:
        with display_for(board, console) as display:
            for run in _polled(cluster, run_id):
                if run:
                    update(board, run)
                if run and run.has_ended:
                    board.succeed(time.time()) if run.state == "done" else board.fail(time.time())
                display.refresh(time.time())
                if run and run.has_ended:
                    return run
    except Stopped as stopped:
        stopped.again = to_stop
        raise
    except CalmError as error:
        raise CalmError(f"{error}; {to_stop}", can_pass=error.can_pass) from None
    raise AssertionError  # a run is polled for until it ends


def _polled(cluster: "Cluster", run_id: str) -> "Iterator[ClusterRun | None]":
    """A run again and again; None where it is time to redraw."""
    from pipelines.cluster.runs import get_run

    began = answered = time.monotonic()
    while True:
        try:
            run = get_run(cluster, run_id)
            answered = time.monotonic()
            yield run
        except CalmError as error:
            if not error.can_pass or time.monotonic() > answered + _PATIENCE_SECONDS:
                raise
        now = time.monotonic()
        until = now + max(_POLL_SECONDS, min((now - began) * _POLL_SHARE, _LONGEST_POLL_SECONDS))
        while time.monotonic() < until:
            yield None
            time.sleep(_REDRAW_SECONDS)


def update(board: Board, run: "ClusterRun") -> None:
    """Let a board show how far Kubeflow says that each stage is. Stages of a cluster work side by side."""
    for state in run.stages:
        row = board.row(state.stage)
        row.state, row.started, row.ended = state.state, state.started, state.ended
        if row.state == "cached":
            row.started = row.ended = None
        row.event = _event(state)


def _event(state: "StageState") -> ProgressEvent | None:
    if state.tasks == 1 and not state.reason:
        return None
    note = state.reason or f"{state.finished} of {state.tasks} tasks"
    kind = "failed" if state.state == "failed" else "running"
    return ProgressEvent(time=state.started or 0.0, stage=state.stage, state=kind, note=note)
