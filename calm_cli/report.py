"""`calm report`: the page about a run, of whatever names it."""

import os
import re
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from calm_cli.runs import report_of
from calm_cli.screen import Screen
from calm_core.errors import CalmError
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts, ReportFacts
from calm_core.telemetry.mlflow_run import REGISTERED
from pipelines.local.home import Home

_PAGE_NAME = "report.html"
_RUN, _VERSION = re.compile(r"runs:/+([^/?#]+)"), re.compile(r"models:/([^/]+)/(\d+)")
_LARGEST_PAGE = 64 << 20  # bytes, of one that somebody else has stored; ours have some 200 KB


def report(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[URI]",
            help="A run of `calm runs` (its number, or the beginning of its name), a report or an evaluation, a "
            "registered model, or a run of MLflow (runs:/ID). [default: the newest run that has a report]",
            show_default=False,
        ),
    ] = "",
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="FILE", help="Write the page there, instead of opening it."),
    ] = None,
) -> None:
    """Find the page about a run, print where it is, and open it where there is a screen.

    Of an evaluation alone, it is the page of its scores.

    Examples:

      calm report

      calm report 3 --output report.html

      calm report out/evaluation

      calm report models:/calm@champion
    """
    if what.startswith(REGISTERED):
        data, place = _in_mlflow(what), None
    else:
        uri = what if _is_artifact(what) else report_of(what)
        artifact = Artifact[EvaluationFacts | ReportFacts](uri, EvaluationFacts, ReportFacts)
        name = artifact.facts.page.path if isinstance(artifact.facts, ReportFacts) else _PAGE_NAME
        data, place = artifact.read(name), artifact.uri_of(name)
    if output:
        if not storage.claim(output, data):
            raise CalmError(f"{output}: is there already; name another file with --output")
        Screen(soft_wrap=True).print(output)
        return
    page = _local(place) if place and storage.is_local(place) else _copied(data)
    Screen(soft_wrap=True).print(str(page))
    if sys.stdout.isatty() and _has_screen():
        webbrowser.open(page.as_uri())


def _is_artifact(what: str) -> bool:
    """Whether it names a place rather than a run: runs have numbers, and names of one word."""
    return "/" in what or (not what.isdecimal() and storage.is_folder(what) if what else False)


def _in_mlflow(uri: str) -> bytes:
    """The page that lies in a run of MLflow, or in that of a version, or else in the version itself.

    Raises:
        CalmError: There is no such run or version, or it has no page.
    """
    from calm_core.telemetry.mlflow_store import mlflow_answers, reach_mlflow
    from calm_core.weights.registered import registered_evaluation
    from calm_core.weights.versions import exact_uri
    from pipelines.local.tracking import read_tracking

    read_tracking(Home.find(make=False))
    reach_mlflow(to_read=True)
    run = _RUN.fullmatch(uri)
    exact = "" if run else exact_uri(uri)
    version = _VERSION.fullmatch(exact)
    from mlflow import MlflowClient

    with mlflow_answers(), tempfile.TemporaryDirectory(prefix="calm-report-") as folder:
        client = MlflowClient()
        if run:
            run_id = run[1]
        elif version:
            run_id = client.get_model_version(version[1], version[2]).run_id or ""
        else:
            raise CalmError(f"{uri}: has no report; name models:/NAME@ALIAS, models:/NAME/NUMBER or runs:/ID")
        listed = client.list_artifacts(run_id) if run_id else []
        pages = [file for file in listed if file.path == _PAGE_NAME and not file.is_dir]
        if pages and (pages[0].file_size or 0) <= _LARGEST_PAGE:
            return Path(client.download_artifacts(run_id, _PAGE_NAME, folder)).read_bytes()
    if version:
        with registered_evaluation(exact) as evaluation:
            if evaluation:
                return evaluation.read(_PAGE_NAME)
    raise CalmError(f"{uri}: has no report; `calm runs` lists the runs that have one")


def _copied(data: bytes) -> Path:
    """The page as a file of this machine, which stays: a browser reads it later."""
    page = Path(tempfile.mkdtemp(prefix="calm-report-")) / _PAGE_NAME
    page.write_bytes(data)
    return page


def _local(uri: str) -> Path:
    return Path(storage.filesystem_of(uri)[1]).absolute()


def _has_screen() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
