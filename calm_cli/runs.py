"""`calm runs`: what has run in a home or a cluster, and where everything of it lies."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from calm_cli import cluster_runs
from calm_cli.board import Board
from calm_cli.cluster import NamespaceOption
from calm_cli.display import clock
from calm_cli.options import DEFAULT_PROFILE, JsonOption, configuration
from calm_cli.result import print_json
from calm_cli.screen import Screen
from calm_cli.summary import REPORT_NAME, aligned
from calm_cli.tables import show_pairs
from calm_cli.usage import App, Group
from calm_core.config import Config, text
from calm_core.errors import CalmError, ConfigError
from calm_core.shown import by_dotted_name, redacted, visible
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts, Facts, RegistrationFacts, ReportFacts, Score
from components.quoting import unquoted
from pipelines.local.home import HOME_VARIABLE, Home
from pipelines.local.run import RUN_REPORT
from pipelines.local.runs import PastRun, past_runs

_ENDED, _CHANGED = "BrierLM, or how it ended", "changed settings"
_NARROW = 80
"""Columns below which not only the settings give way."""


class _Runs(Group):
    """`calm runs` is `calm runs list`, and `calm runs 3` is `calm runs show 3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and (args[0] in self.commands or args[0] in ctx.help_option_names):
            return super().parse_args(ctx, args)
        words = [word for before, word in pairwise(["", *args]) if before not in _WITH_VALUES and word[:1] != "-"]
        return super().parse_args(ctx, ["show" if words else "list", *args])


runs_app = App(
    cls=_Runs,
    help="""Look at what has run: on this machine, or with --host in a cluster.

    `calm runs` lists all, `calm runs RUN` shows one.

    Examples:

      calm runs

      calm runs 3

      calm runs list --host https://kubeflow.example/pipeline
    """,
)
_WITH_VALUES = ("--host", "--namespace")

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Its number, or the beginning of its name; in a cluster, of its id.")
]
HostOption = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="URL",
        help="Address of Kubeflow Pipelines. [default: runs of this machine]",
        show_default=False,
    ),
]


@runs_app.command("list")
def list_(host: HostOption = "", namespace: NamespaceOption = "", json_: JsonOption = False) -> None:
    """List runs, the newest first: how they ended, their scores, versions, and where all of it lies.

    Examples:

      calm runs

      calm runs --json

      calm runs list --host https://kubeflow.example/pipeline
    """
    if host:
        cluster_runs.show_list(host, namespace, json_)
        return
    home = Home.find(make=False)
    found = [_Run(past) for past in past_runs(home)]
    found.reverse()
    if json_:
        print_json([each.as_json() for each in found])
        return
    if found:
        _list(found, home, Screen())
    else:
        Screen(soft_wrap=True).print(
            f"{home.path}: nothing has run here yet; `calm run` does, and {HOME_VARIABLE} names another folder. "
            "What single stages make lies where their --output says."
        )
    if unfinished := _unfinished(home):
        Screen(soft_wrap=True).print(unfinished)


@runs_app.command()
def show(run: RunArgument, host: HostOption = "", namespace: NamespaceOption = "", json_: JsonOption = False) -> None:
    """Show all about one run.

    Examples:

      calm runs 3

      calm runs show 3f2a --host https://kubeflow.example/pipeline
    """
    if host:
        cluster_runs.show_one(host, namespace, run, json_)
        return
    found = _chosen([_Run(past) for past in past_runs(Home.find(make=False))], run)
    if json_:
        print_json(found.as_json() | {"settings": found.settings})
    else:
        _show(found, Screen(soft_wrap=True))


@runs_app.command()
def logs(
    run: RunArgument,
    stage: Annotated[
        str, typer.Argument(metavar="[STAGE]", help="One stage or task, in a cluster; all of them otherwise.")
    ] = "",
    host: HostOption = "",
    namespace: NamespaceOption = "",
    follow: Annotated[bool, typer.Option("--follow", help="In a cluster: go on as long as the pod works.")] = False,
) -> None:
    """Print what a run has printed.

    Examples:

      calm runs logs 3

      calm runs logs 3f2a train-calm --follow --host https://kubeflow.example/pipeline
    """
    if host:
        cluster_runs.print_logs(host, namespace, run, stage, follow)
        return
    found = _chosen([_Run(past) for past in past_runs(Home.find(make=False))], run)
    if stage or follow:
        raise ConfigError(f"{'--follow' if follow else stage}: a run of this machine has one log: {found.past.log}")
    try:
        with open(found.past.log, encoding="utf-8", errors="replace") as log:
            cluster_runs.write_lines(log)
    except OSError as error:
        raise CalmError(f"{found.past.log}: cannot be read: {error.strerror}") from None


@runs_app.command()
def stop(run: RunArgument, host: HostOption = "", namespace: NamespaceOption = "") -> None:
    """End a run in a cluster, and the TrainJobs that it has started. Its checkpoints stay.

    Example:

      calm runs stop 3f2a --host https://kubeflow.example/pipeline
    """
    if not host:
        raise ConfigError("--host: is missing; a run of this machine is stopped with Ctrl-C where it was started")
    cluster_runs.stop(host, namespace, run)


def report_of(wanted: str = "") -> str:
    """URI of the artifact with the page about a run; of a run of an earlier version, with that of its scores.

    Args:
        wanted: Its number, or the beginning of its name; empty: the newest one that has a page.

    Raises:
        CalmError: There is no such run, or it has no page.
    """
    home = Home.find(make=False)
    found = [_Run(past) for past in past_runs(home)]
    chosen = [_chosen(found, wanted)] if wanted else [each for each in reversed(found) if each.report][:1]
    if not chosen:
        raise CalmError(f"{home.path}: no run here has a report yet; `calm run` makes one")
    if not chosen[0].report:
        raise CalmError(f"{wanted}: this run has no report: {chosen[0].ending}; `calm runs` lists all")
    return chosen[0].report.rpartition("/")[0]


def _unfinished(home: Home) -> str:
    """What has checkpoints here, in words; empty where nothing has."""
    numbers = {
        kind: len([*home.checkpoints.glob(pattern)])
        for kind, pattern in (("training", "*/spec"), ("evaluation", "evaluation-*/"))
    }
    told = [f"{number} unfinished {kind}{'s' * (number > 1)}" for kind, number in numbers.items() if number]
    return (
        f"checkpoints of {' and '.join(told)}: {home.checkpoints}/; delete the folder of one that shall not go on"
        if told
        else ""
    )


def asked_for(
    name: str, profile: str, sources: Sequence[str], text_field: str | None, overrides: Sequence[str], config: Config
) -> dict[str, Any]:
    """What a run is remembered by: the command, the profile, and the settings that differ from the profile's.

    Args:
        name: Of the command.
        profile, sources, text_field, overrides: As the options give them.
        config: The settings that they make.
    """
    command = ["calm", name] if profile == DEFAULT_PROFILE else ["calm", name, "--profile", profile]
    for option, values in (("--source", sources), ("--text-field", [text_field or ""]), ("--set", overrides)):
        command += [word for value in values if value for word in (option, value)]
    before, after = (
        dict(by_dotted_name(each.model_dump(mode="json"))) for each in (configuration(profile, None), config)
    )
    changed = {name: text.write(value) for name, value in after.items() if before.get(name) != value}
    return {"command": command, "profile": profile, "changed": changed}


@dataclass(frozen=True)
class _Run:
    """A run, and what its artifacts say: those that can be read."""

    past: PastRun

    @cached_property
    def board(self) -> Board:
        board = Board()
        for event in self.past.events:
            board.apply(event)
        return board

    @cached_property
    def artifacts(self) -> dict[str, Artifact[Facts] | str]:
        """By the names of the pipeline's outputs, or their places; of one that cannot be read, why."""
        found: dict[str, Artifact[Facts] | str] = {}
        for name, uri in self.past.artifacts.items():
            try:
                found[name] = Artifact.of_any_kind(uri)
            except CalmError as error:
                found[name] = str(error)
        return found

    def facts_of(self, kind: type[Any], name: str) -> Any:
        artifact = self.artifacts.get(name)
        return artifact.facts if isinstance(artifact, Artifact) and isinstance(artifact.facts, kind) else None

    @property
    def score(self) -> Score | None:
        facts: EvaluationFacts | None = self.facts_of(EvaluationFacts, "evaluation_report")
        return facts.brierlm if facts else None

    @property
    def registered(self) -> RegistrationFacts | None:
        facts: RegistrationFacts | None = self.facts_of(RegistrationFacts, "registration")
        return facts

    @property
    def report(self) -> str:
        """URI of the page about the run, of an earlier version that of its scores; empty if there is none."""
        for name in (RUN_REPORT, "evaluation_report"):
            match self.artifacts.get(name):
                case Artifact(uri=uri, facts=ReportFacts(page=page)):
                    return storage.join(uri, page.path)
                case Artifact(uri=uri, facts=EvaluationFacts()):
                    return storage.join(uri, REPORT_NAME)
        return ""

    @property
    def stage(self) -> str:
        """Where a run is that has not finished, or the stage that failed."""
        blamed = self.board.blamed
        if blamed and self.past.ending == "failed":
            return blamed.stage
        return self.past.events[-1].stage if self.past.events else ""

    @property
    def ending(self) -> str:
        """How it ended, for people."""
        match self.past.ending:
            case "done":
                return "done"
            case "unknown":
                return f"did not finish: {self.stage}" if self.stage else "did not finish"
            case ending:
                return f"{ending}: {self.stage}" if self.stage else ending

    @property
    def reason(self) -> str:
        """Why it failed, as far as a stage said so."""
        blamed = self.board.blamed
        return blamed.reason if blamed and self.past.ending == "failed" else ""

    @property
    def changed(self) -> dict[str, str]:
        """Settings that differ from the profile's, as YAML."""
        changed = self.past.asked.get("changed")
        return {str(k): str(v) for k, v in changed.items()} if isinstance(changed, dict) else {}

    @property
    def command(self) -> str:
        """The command, as it is typed; empty where an earlier version noted none."""
        words = self.past.asked.get("command")
        return shlex.join(str(word) for word in words) if isinstance(words, list) else ""

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, by section, and what else the pipeline was given."""
        arguments = self.past.request.get("arguments")
        return unquoted(arguments) if isinstance(arguments, dict) else {}

    def as_json(self) -> dict[str, Any]:
        """What is known, less the settings, as JSON values."""
        score, registered, past = self.score, self.registered, self.past
        return {
            "number": past.number,
            "name": past.name,
            "started": past.started,
            "ended": past.ending,
            "seconds": past.seconds,
            "stage": self.stage,
            "reason": self.reason,
            "command": self.command,
            "profile": past.asked.get("profile", ""),
            "changed": self.changed,
            "brierlm": score.model_dump() if score else None,
            "registered": registered.model_dump() if registered else None,
            "artifacts": {
                name: {"uri": past.artifacts[name], "error": found}
                if isinstance(found, str)
                else {"uri": found.uri, "kind": found.manifest.kind, "digest": found.digest}
                for name, found in self.artifacts.items()
            },
            "report": self.report,
            "log": str(past.log),
        }


def _chosen(found: Sequence[_Run], wanted: str) -> _Run:
    """The run that a number or the beginning of a name means.

    Raises:
        CalmError: None, or several.
    """
    numbered = [each for each in found if wanted == str(each.past.number)]
    names = [each for each in found if each.past.name.startswith((wanted, f"run-{wanted}"))]
    match numbered or names:
        case [one]:
            return one
        case []:
            raise CalmError(f"{wanted}: no run has this number or a name that begins so; `calm runs` lists them")
        case several:
            listed = ", ".join(each.past.name for each in several[:3])
            raise CalmError(f"{wanted}: {len(several)} runs have names that begin so ({listed}, ...); give more of one")


def _list(found: Sequence[_Run], home: Home, screen: Screen) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run", "started", _ENDED, "model", _CHANGED):
        gives_way = heading == _CHANGED or (heading == _ENDED and screen.width < _NARROW)  # a run's number never does
        table.add_column(
            Text(heading, no_wrap=heading == _CHANGED, overflow="ellipsis"),
            header_style="dim",
            no_wrap=not gives_way,
            justify="right" if heading == "run" else "left",
        )
    for each in found:
        registered = each.registered
        table.add_row(
            str(each.past.number),
            each.past.started[:-3] or visible(each.past.name),
            visible(_score(each.score) or each.ending),
            visible(f"{registered.model_name}/{registered.version}") if registered else "",
            Text(visible(_short(each.changed)), no_wrap=True, overflow="ellipsis"),
        )
    screen.print(table)
    screen.print(
        f"\nartifacts: {home.pipeline_root}/",
        f"logs: {home.logs}/",
        "what single stages make lies where their --output said",
        f"all about one, e.g. where its report lies: calm runs {found[0].past.number}",
        sep="\n",
        soft_wrap=True,
    )


def _score(score: Score | None) -> str:
    return "".join(aligned([score] if score else []))


def _short(changed: Mapping[str, str]) -> str:
    """Settings without their sections, as long as that names them: learning_rate=0.0005. The longest come last."""
    last = [name.rpartition(".")[2] for name in changed]
    told = (
        f"{short if last.count(short) == 1 else name}={value}"
        for (name, value), short in zip(changed.items(), last, strict=True)
    )
    return " ".join(sorted(told, key=len))


def _show(each: _Run, screen: Screen) -> None:
    """Print all about one run."""
    past, registered = each.past, each.registered
    took = "" if past.seconds is None else f", after {clock(past.seconds)}"
    lines = [
        ("run", f"{past.number}  {past.name}"),
        ("started", past.started),
        ("ended", f"{each.ending}{took}" if past.ending != "running" else each.ending),
        ("why", each.reason),
        ("profile", str(past.asked.get("profile", ""))),
        *(("changed" if i == 0 else "", f"{name}: {value}") for i, (name, value) in enumerate(each.changed.items())),
        ("BrierLM", _score(each.score)),
        ("registered", f"models:/{registered.model_name}/{registered.version}" if registered else ""),
        ("", registered.reason if registered else ""),
        ("report", each.report),
        ("log", str(past.log)),
        ("again" if past.ending == "done" else "to go on", each.command),
    ]
    show_pairs([(name, redacted(value)) for name, value in lines if value], screen)
    for name, found in each.artifacts.items():
        if isinstance(found, str):
            screen.print(f"\n{name}: {found}")
        else:
            screen.print(f"\n{name}: {found.uri}", f"  {found.manifest.kind}, digest {found.digest}", sep="\n")
    screen.print(f"\nall settings: calm runs {past.number} --json")
