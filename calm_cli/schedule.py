"""`calm schedule`: runs by the clock, in a cluster."""

from typing import TYPE_CHECKING, Annotated

import typer

from calm_cli.cluster import HostOption, NamespaceOption, PipelineRootOption, SourceOption, warn_of_partitions
from calm_cli.options import JsonOption, ProfileOption, SetOption, TextFieldOption, configuration
from calm_cli.result import print_json
from calm_cli.screen import Screen
from calm_cli.submit import DEFAULT_PROFILE
from calm_cli.tables import show_table
from calm_cli.usage import App
from pipelines.compile import RETRAIN_PIPELINE

if TYPE_CHECKING:
    from pipelines.cluster.schedule import Schedule

schedule_app = App(
    help="""Let Kubeflow retrain by the clock, when there is new text: always the newest version, one run at a time.

    Examples:

      calm schedule create --cron '0 0 3 * * *' --source 's3://bucket/texts/*.jsonl'

      calm schedule list
    """
)
_NAME = "calm-retrain"

NameOption = Annotated[str, typer.Option("--name", metavar="NAME", help="The schedule's name.")]
NameArgument = Annotated[str, typer.Argument(metavar="[NAME]", help=f"The schedule's name. [default: {_NAME}]")]


@schedule_app.command()
def create(
    cron: Annotated[
        str,
        typer.Option(
            metavar="FIELDS",
            help="When, in six fields: second minute hour day month weekday, in the cluster's time (UTC).",
        ),
    ],
    name: NameOption = _NAME,
    host: HostOption = "",
    namespace: NamespaceOption = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    source: SourceOption = None,
    text_field: TextFieldOption = None,
    set_: SetOption = None,
    pipeline_root: PipelineRootOption = "",
) -> None:
    """Create a schedule, or change the one of the same name. The same command twice changes nothing.

    Each run looks for text that no registered version was trained on, and ends if there is none; `calm retrain` does
    so on one machine. None starts while one is at work; of the times missed meanwhile, one is made up for. The
    pipeline's version is the newest at the time of each run; this command uploads it.

    Example:

      calm schedule create --cron '0 30 2 * * MON' --source 's3://bucket/texts/*.jsonl' --pipeline-root s3://bucket/calm
    """
    config = configuration(profile, set_, {"data.sources": source or None, "data.text_field": text_field})
    from pipelines.cluster import schedule
    from pipelines.cluster.client import connect
    from pipelines.cluster.submit import Package, arguments, checked_root, is_by_digest

    cron = schedule.checked_cron(cron)
    package, root = Package(RETRAIN_PIPELINE), checked_root(pipeline_root) if pipeline_root else ""
    values = arguments(config, root, package, by_the_clock=True)
    warn_of_partitions(config)
    if not is_by_digest(config, package):
        Screen(stderr=True, soft_wrap=True).print(
            "the image is named by a tag: what Kubeflow has cached stays when another image gets that tag; name it by "
            "digest: --set cluster.image=NAME@sha256:...",
            style="yellow",
        )
    cluster = connect(host, namespace)
    made, is_new = schedule.create(cluster, package, name, cron, values, root)
    paused = f"; it is paused: calm schedule resume {name}" if made.is_paused else ""
    what = "created" if is_new else "there already, and as it should be"
    Screen(soft_wrap=True).print(
        f"{name}: {what}, {cron}{paused}\n{cluster.link(f'recurringrun/details/{made.id}')}",
    )


@schedule_app.command("list")
def list_(host: HostOption = "", namespace: NamespaceOption = "", json_: JsonOption = False) -> None:
    """List the schedules, the newest first.

    Example:

      calm schedule list --host https://kubeflow.example/pipeline
    """
    from pipelines.cluster import schedule
    from pipelines.cluster.client import connect

    found = list(schedule.schedules(connect(host, namespace)))
    if json_:
        print_json([_as_json(each) for each in found])
    elif found:
        rows = [[each.name, each.cron, "paused" if each.is_paused else "on", _created(each)] for each in found]
        show_table(["name", "when", "state", "created"], rows, Screen())
    else:
        Screen(soft_wrap=True).print("there is no schedule; `calm schedule create` makes one")


@schedule_app.command()
def pause(name: NameArgument = _NAME, host: HostOption = "", namespace: NamespaceOption = "") -> None:
    """Let a schedule start no more runs; one at work goes on.

    Example:

      calm schedule pause
    """
    from pipelines.cluster import schedule
    from pipelines.cluster.client import connect

    schedule.pause(connect(host, namespace), name)
    Screen(soft_wrap=True).print(f"{name}: paused; to go on: calm schedule resume {name}")


@schedule_app.command()
def resume(name: NameArgument = _NAME, host: HostOption = "", namespace: NamespaceOption = "") -> None:
    """Let a paused schedule start runs again.

    Example:

      calm schedule resume
    """
    from pipelines.cluster import schedule
    from pipelines.cluster.client import connect

    schedule.resume(connect(host, namespace), name)
    Screen(soft_wrap=True).print(f"{name}: runs again at its next time")


@schedule_app.command()
def delete(name: NameArgument = _NAME, host: HostOption = "", namespace: NamespaceOption = "") -> None:
    """Delete a schedule. Its runs stay, and one at work goes on.

    Example:

      calm schedule delete
    """
    from pipelines.cluster import schedule
    from pipelines.cluster.client import connect

    schedule.delete(connect(host, namespace), name)
    Screen(soft_wrap=True).print(f"{name}: deleted")


def _as_json(each: "Schedule") -> dict[str, object]:
    return {
        "id": each.id,
        "name": each.name,
        "cron": each.cron,
        "paused": each.is_paused,
        "created": each.created.isoformat() if each.created else None,
        "pipeline": each.pipeline_id,
    }


def _created(each: "Schedule") -> str:
    return each.created.astimezone().strftime("%Y-%m-%d %H:%M") if each.created else ""
