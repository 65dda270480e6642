"""`calm registry`: the versions of the registered model, and which of them is champion."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from calm_cli.options import JsonOption
from calm_cli.result import print_json
from calm_cli.screen import Screen
from calm_cli.summary import aligned
from calm_cli.tables import show_pairs
from calm_cli.usage import App
from calm_core.config import RegistryConfig
from calm_core.config.base import parse_section
from calm_core.errors import ConfigError
from calm_core.registry.aliases import Aliases
from calm_core.registry.overview import Version, all_versions, delete_unused, one_version, unused
from calm_core.shown import redacted, visible
from calm_core.telemetry.mlflow_store import mlflow_answers
from pipelines.local.home import Home

registry_app = App(
    help="""Look at the versions of the registered model, and say which of them is champion.

    Examples:

      calm registry list

      calm registry compare 1 2

      calm registry rollback --reason "repeats itself"
    """
)

ModelOption = Annotated[
    str, typer.Option("--model", metavar="NAME", help="The registered model (registry.model_name).")
]
AliasOption = Annotated[str, typer.Option("--alias", metavar="NAME", help="The champion's alias (registry.alias).")]
VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="A version's number.")]
ReasonOption = Annotated[str, typer.Option(metavar="TEXT", help="Why; it stands in the version's tags.")]


@registry_app.command("list")
def list_(model: ModelOption = "calm", json_: JsonOption = False) -> None:
    """List the versions, the newest first: aliases, scores, when they were registered, and what was decided.

    Example:

      calm registry list
    """
    with _registry(model):
        versions = all_versions(model)
    if json_:
        print_json([each.as_json() for each in versions])
    elif versions:
        _list(versions, Screen())
    else:
        Screen().print(f"{model} has no version; `calm run` registers one", soft_wrap=True)


@registry_app.command()
def show(version: VersionArgument, model: ModelOption = "calm", json_: JsonOption = False) -> None:
    """Show all about one version: what was decided by which rules, what it was compared with, and its tags.

    Example:

      calm registry show 1
    """
    with _registry(model):
        found = one_version(model, version)
    if json_:
        print_json(found.as_json() | {"tags": found.tags})
    else:
        _show(found, Screen(soft_wrap=True))


@registry_app.command()
def compare(
    first: Annotated[int, typer.Argument(metavar="FIRST", min=1, help="The version that others are compared with.")],
    second: Annotated[int, typer.Argument(metavar="SECOND", min=1, help="The version that is compared with it.")],
    model: ModelOption = "calm",
    json_: JsonOption = False,
) -> None:
    """Tell which of two versions is better, on the same held-out documents: `calm compare` of what they carry.

    Example:

      calm registry compare 1 2
    """
    from calm_cli.compare import compare as compare_evaluations

    parse_section(RegistryConfig, {"model_name": model})
    compare_evaluations([f"models:/{model}/{first}", f"models:/{model}/{second}"], json_=json_)


@registry_app.command()
def promote(
    version: VersionArgument, reason: ReasonOption, model: ModelOption = "calm", alias: AliasOption = "champion"
) -> None:
    """Make a version champion by hand, whatever the rules say.

    Its files are checked before, so that nobody is left without a model.

    Example:

      calm registry promote 1 --reason "answers shorter"
    """
    with _registry(model, alias) as config:
        from calm_core.registry.evidence import check_files

        given, found = _given(reason), one_version(model, version)
        check_files(found.uri)
        decided = _aliases(config).promote(found.number, given)
    Screen(soft_wrap=True).print(f"version {found.number} of {model}: {decided.reason}")


@registry_app.command()
def rollback(reason: ReasonOption, model: ModelOption = "calm", alias: AliasOption = "champion") -> None:
    """Make the version champion again that was it before the present one.

    Its files are checked before. Run it again to go further back: the version that gave way is not promoted again
    unless you do it.

    Example:

      calm registry rollback --reason "repeats itself"
    """
    with _registry(model, alias) as config:
        from calm_core.registry.evidence import check_files

        given, aliases = _given(reason), _aliases(config)
        before, now = aliases.roll_back(given, lambda number: check_files(f"models:/{model}/{number}"))
    Screen(soft_wrap=True).print(f"{alias} of {model}: version {now} instead of version {before}")


@registry_app.command("delete-unused")
def delete_unused_(
    model: ModelOption = "calm",
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions stay, whatever they are.")] = 5,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; without it they are listed.")] = False,
    json_: JsonOption = False,
) -> None:
    """Delete versions that nobody needs, or list them: neither an alias points to them, nor were they ever champion.

    The newest ones stay, as does what has not been decided about and what other programs have registered. MLflow
    keeps the files of deleted versions until `mlflow gc` deletes their runs.

    Example:

      calm registry delete-unused --keep 10
    """
    with _registry(model):
        found = delete_unused(model, keep) if yes else unused(all_versions(model), keep)
    numbers = [each.number for each in reversed(found)]
    if json_:
        print_json({"deleted" if yes else "unused": numbers})
        return
    screen = Screen(soft_wrap=True)
    if not found:
        screen.print(f"{model}: no version is unused")
        return
    screen.print(f"{'deleted' if yes else 'unused'} versions of {model}: {', '.join(numbers)}")
    if not yes:
        screen.print("with --yes they are deleted")


@contextmanager
def _registry(model: str, alias: str = "champion") -> Iterator[RegistryConfig]:
    """The registry of the home, or of MLFLOW_TRACKING_URI; what MLflow raises is one line.

    Raises:
        CalmError: A name cannot be one, nothing has run yet, or MLflow does not answer.
    """
    from pipelines.local.tracking import read_tracking

    names = {"model_name": model, "alias": alias}
    config = parse_section(RegistryConfig, names | ({"challenger_alias": "newest"} if alias == "challenger" else {}))
    read_tracking(Home.find(make=False))
    with mlflow_answers():
        yield config


def _aliases(config: RegistryConfig) -> Aliases:
    return Aliases(config, lambda number, champion, rules: None)  # nothing is judged by hand


def _given(reason: str) -> str:
    if not reason.strip():
        raise ConfigError("--reason: is empty; say why, for those who look at it later")
    return reason


def _list(versions: Sequence[Version], screen: Screen) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("version", "aliases", "BrierLM", "registered", "decision"):
        gives_way = heading == "decision"
        table.add_column(
            Text(heading, no_wrap=True, overflow="ellipsis"),
            header_style="dim",
            no_wrap=not gives_way,
            justify="right" if heading == "version" else "left",
        )
    for each in versions:
        table.add_row(
            each.number,
            visible(", ".join(each.aliases)),
            "".join(aligned([each.score] if each.score else [])),
            each.registered.removesuffix("+00:00").replace("T", " "),
            Text(visible(_decision(each)), no_wrap=True, overflow="ellipsis"),
        )
    screen.print(table)
    screen.print(f"\nall about one, e.g. the whole reason: calm registry show {versions[0].number}", soft_wrap=True)


def _decision(version: Version) -> str:
    decision = version.decision
    return (decision.decided.reason or decision.state) if decision else "unknown"


def _show(version: Version, screen: Screen) -> None:
    decision = version.decision
    lines = [
        ("version", version.uri),
        ("aliases", ", ".join(version.aliases)),
        ("registered", version.registered),
        ("BrierLM", "".join(aligned([version.score] if version.score else []))),
        ("accuracy", "" if version.autoencoder_accuracy is None else f"{version.autoencoder_accuracy:.2%}"),
        ("decision", decision.state if decision else "unknown"),
        ("", decision.decided.reason if decision else ""),
        *(("before", reason) for reason in reversed(decision.earlier if decision else ())),
        *(
            (check.rule, f"{'yes' if check.passed else 'no'}: {check.told}")
            for check in (decision.decided.checks if decision else [])
        ),
        ("run", version.run),
    ]
    show_pairs([(name, redacted(value)) for name, value in lines if value], screen)
    screen.print()
    show_pairs(
        [(name, redacted(value)) for name, value in sorted(version.tags.items()) if name.startswith("calm.")], screen
    )
