"""Runs in a cluster, as `calm runs` shows them."""

import codecs
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from calm_cli.board import Board
from calm_cli.cluster import update
from calm_cli.display import board_lines, clock
from calm_cli.result import print_json
from calm_cli.screen import Screen
from calm_cli.tables import show_pairs, show_table
from calm_core.errors import CalmError
from calm_core.shown import lines_of, redacted
from components.quoting import unquoted

if TYPE_CHECKING:
    from pipelines.cluster.client import Cluster
    from pipelines.cluster.runs import ClusterRun

_ID_CHARACTERS = 8
_LONGEST_LINE = 1 << 16


def show_list(host: str, namespace: str, as_json: bool) -> None:
    """Print the runs of a cluster, the newest first."""
    from pipelines.cluster.client import connect
    from pipelines.cluster.runs import all_runs

    cluster = connect(host, namespace)
    found = list(all_runs(cluster))
    if as_json:
        print_json([_as_json(cluster, run) for run in found])
    elif found:
        rows = [[run.id[:_ID_CHARACTERS], _time(run.started), run.state, run.name] for run in found]
        show_table(["run", "started", "state", "name"], rows, Screen())
        Screen(soft_wrap=True).print(
            f"\nall about one: calm runs show {found[0].id[:_ID_CHARACTERS]} {cluster.options}"
        )
    else:
        Screen(soft_wrap=True).print(f"{cluster.host}: nothing of ours has run there yet; `calm submit` does")


def show_one(host: str, namespace: str, wanted: str, as_json: bool) -> None:
    """Print all about a run of a cluster."""
    from pipelines.cluster.client import connect
    from pipelines.cluster.runs import find_run, reason_of

    cluster = connect(host, namespace)
    run = find_run(cluster, wanted)
    if as_json:
        stages = [vars(stage) for stage in run.stages]
        told = {"stages": stages, "trouble": run.trouble, "settings": unquoted(run.parameters)}
        print_json(_as_json(cluster, run) | told)
        return
    screen = Screen(soft_wrap=True)
    took = f", after {clock(run.ended - run.started)}" if run.ended and run.started else ""
    lines = [
        ("run", f"{run.id}  {run.name}"),
        ("started", _time(run.started)),
        ("state", run.state + took),
        ("why", reason_of(cluster, run) if run.state == "failed" else ""),
        ("stages", run.trouble if run.state != "failed" else ""),
        ("root", run.root),
        ("page", cluster.link(f"runs/details/{run.id}")),
    ]
    show_pairs([(name, redacted(value)) for name, value in lines if value], screen)
    if run.stages:
        screen.print()
        board, now = Board((), run.started or 0.0), run.ended or datetime.now().timestamp()
        update(board, run)
        for line in board_lines(board, now, screen.width):
            screen.print(line)
    screen.print(f"\nwhat it prints: calm runs logs {run.id} {cluster.options}")


def print_logs(host: str, namespace: str, wanted: str, stage: str, follow: bool) -> None:
    """Print what the tasks of a run of a cluster have printed, each line behind its task's name."""
    from pipelines.cluster.client import connect
    from pipelines.cluster.runs import find_run, logs

    cluster = connect(host, namespace)
    run = find_run(cluster, wanted)
    for task, parts in logs(cluster, run, stage, follow):
        write_lines(_lines(parts), f"{task} | ")


def stop(host: str, namespace: str, wanted: str) -> None:
    """End a run of a cluster, and delete its TrainJobs."""
    from pipelines.cluster.client import connect
    from pipelines.cluster.kubernetes import RUN_LABEL, connect_kubernetes, delete_train_jobs
    from pipelines.cluster.runs import find_run, terminate

    cluster = connect(host, namespace)
    run = find_run(cluster, wanted)
    terminate(cluster, run)
    Screen(soft_wrap=True).print(
        f"{run.id}: is being stopped; its checkpoints stay, and the same settings go on from them"
    )
    try:
        number = delete_train_jobs(connect_kubernetes(), cluster.namespace, run.id)
    except CalmError as error:
        Screen(stderr=True, soft_wrap=True).print(
            f"TrainJobs of it, if there are any, go on ({error}); delete them: kubectl delete trainjobs -n "
            f"{cluster.namespace} -l {RUN_LABEL}={run.id}",
            style="yellow",
        )
        return
    if number:
        Screen(soft_wrap=True).print(f"{'1 TrainJob' if number == 1 else f'{number} TrainJobs'} of it deleted")


def write_lines(lines: Iterable[str], before: str = "") -> None:
    """Print lines of a log; nothing in them acts on the terminal, and no secret of a URL is told."""
    for line in lines:
        sys.stdout.write(lines_of(before + line.rstrip("\r\n")) + "\n")
        sys.stdout.flush()


def _lines(parts: Iterable[bytes]) -> Iterator[str]:
    """Lines of a text that comes in parts, of bounded length."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    rest = ""
    for part in parts:
        *whole, rest = (rest + decode(part)).split("\n")
        yield from whole
        while len(rest) > _LONGEST_LINE:
            yield rest[:_LONGEST_LINE]
            rest = rest[_LONGEST_LINE:]
    if rest:
        yield rest


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else ""


def _as_json(cluster: "Cluster", run: "ClusterRun") -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "started": run.started,
        "ended": run.ended,
        "root": run.root,
        "page": cluster.link(f"runs/details/{run.id}"),
    }
