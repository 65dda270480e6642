"""`calm doctor`: what this machine, a pod or a cluster lacks, and how to mend it."""

from typing import Annotated

import typer
from rich.text import Text

from calm_cli.cluster import HostOption, NamespaceOption
from calm_cli.options import JsonOption
from calm_cli.result import print_json
from calm_cli.screen import Screen
from calm_core.errors import EXIT_FAILED
from calm_core.shown import redacted, visible
from pipelines.checks import Check

_SHOWN = {"ok": ("ok", "green"), "failed": ("failed", "bold red"), "unknown": ("-", "dim")}
_STATE_WIDTH, _NAME_WIDTH = 6, 30


def doctor(
    storage: Annotated[
        str,
        typer.Option(
            metavar="URI", help="A folder that is written to and read from; with --cluster, from within a pod."
        ),
    ] = "",
    cluster: Annotated[bool, typer.Option("--cluster", help="Look at a cluster instead of this machine.")] = False,
    host: HostOption = "",
    namespace: NamespaceOption = "",
    json_: JsonOption = False,
) -> None:
    """Check what runs need, one row each, and say how to mend what is missing. Exit code 1 if something is.

    In an image it is the health check. With --cluster it looks at Kubeflow, Trainer, our parts, GPUs and the quota as
    you may see them, and starts a pod of our image for a minute, which looks at storage and MLflow as tasks will.

    Examples:

      calm doctor

      calm doctor --cluster --host https://kubeflow.example/pipeline --storage s3://bucket/calm
    """
    if cluster:
        from components.image import IMAGE
        from pipelines.cluster import doctor as of_cluster

        rows = of_cluster.checks(host, namespace, storage, IMAGE)
    else:
        from pipelines.local import doctor as of_machine

        rows = of_machine.checks(storage)
    screen, seen = Screen(soft_wrap=True), []
    for row in rows:
        seen.append(row)
        if not json_:
            _show(row, screen)
    if json_:
        print_json([vars(row) for row in seen])
    if any(row.state == "failed" for row in seen):
        raise typer.Exit(EXIT_FAILED)


def _show(row: Check, screen: Screen) -> None:
    word, style = _SHOWN[row.state]
    line = Text.assemble(
        (f"{word:<{_STATE_WIDTH}}  ", style), f"{row.name:<{_NAME_WIDTH}}  ", redacted(visible(row.told))
    )
    screen.print(line)
    if row.state == "failed" and row.mend:
        screen.print(f"{'':<{_STATE_WIDTH + _NAME_WIDTH + 4}}{row.mend}")
