"""Mistakes in what is looked at: other kinds of artifacts, missing and damaged ones, other protocols."""

import shutil
from pathlib import Path

from calm_core.data.mixture import mix_datasets
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import EvaluationFacts
from tests.cli.mistakes.frame import Mistake


def _artifact(folder: Path, kind: str) -> Path:
    return folder.parent / "artifacts" / kind


def _damage_held_out_text(folder: Path) -> None:
    for shard in _artifact(folder, "dataset").glob("validation/*.parquet"):
        shard.write_bytes(b"no shard")


def _mix_and_lose(folder: Path) -> None:
    dataset = _artifact(folder, "dataset")
    copy = shutil.copytree(dataset, folder.parent / "copy")
    mix_datasets({str(dataset): 1.0, str(copy): 1.0}, str(folder / "mixture"))
    shutil.rmtree(dataset)


def _evaluate_otherwise(folder: Path) -> None:
    original = Artifact(str(_artifact(folder, "evaluation")), EvaluationFacts)
    with ArtifactWriter(str(folder / "other"), EvaluationFacts, {}, original.manifest.parents) as writer:
        writer.facts = original.facts.model_copy(update={"protocol": original.facts.protocol | {"samples": 99}})


def _evaluate_as_before(folder: Path) -> None:
    original = Artifact(str(_artifact(folder, "evaluation")), EvaluationFacts)
    with ArtifactWriter(str(folder / "earlier"), EvaluationFacts, {}, original.manifest.parents) as writer:
        writer.facts = original.facts


def _damage_scores(folder: Path) -> None:
    _evaluate_as_before(folder)
    (_artifact(folder, "evaluation") / "documents.parquet").write_bytes(b"no scores")


MISTAKES: list[Mistake] = [
    Mistake(
        name="the report of what has none",
        command=("report", "{dataset}"),
        says=("{dataset}: is a dataset artifact, an evaluation or report artifact was expected",),
    ),
    Mistake(
        name="the report of a run that there is not",
        command=("report", "99"),
        says=("99: no run has this number",),
    ),
    Mistake(
        name="a report written over another file",
        command=("report", "{evaluation}", "--output", "page.html"),
        files={"page.html": "somebody's"},
        says=("page.html: is there already; name another file with --output",),
    ),
    Mistake(
        name="comparing what is no evaluation",
        command=("compare", "{evaluation}", "{dataset}"),
        says=("{dataset}: is a dataset artifact, an evaluation artifact was expected",),
    ),
    Mistake(
        name="comparing a report instead of its folder",
        command=("compare", "{evaluation}/report.html"),
        says=("{evaluation}/report.html",),
    ),
    Mistake(
        name="comparing scores of different protocols",
        command=("compare", "{evaluation}", "other", "--json"),
        arrange=_evaluate_otherwise,
        says=("{evaluation} and other cannot be compared", "samples 2 against 99", "evaluate both alike"),
    ),
    Mistake(
        name="comparing nothing",
        command=("compare", "nowhere", "--json"),
        says=("nowhere: the evaluation artifact is missing",),
    ),
    Mistake(
        name="comparing one evaluation",
        command=("compare", "{evaluation}", "{evaluation}"),
        says=("EVALUATION: {evaluation} is compared with nothing; name two or more",),
        exit_code=2,
    ),
    Mistake(
        name="comparing what an earlier version has evaluated",
        command=("compare", "{evaluation}", "earlier"),
        arrange=_evaluate_as_before,
        says=("earlier: was made by an earlier version", "evaluate again"),
    ),
    Mistake(
        name="comparing with damaged scores of documents",
        command=("compare", "{evaluation}", "earlier"),
        arrange=_damage_scores,
        says=("{evaluation}/documents.parquet", "damaged"),
    ),
    Mistake(
        name="a plot of a kind that there is not",
        command=("compare", "{evaluation}", "other", "--plot", "a.gif"),
        says=("--plot: expected a file that ends in .svg, .png or .pdf (got a.gif)",),
        exit_code=2,
    ),
    Mistake(
        name="a plot in a folder that there is not",
        command=("compare", "{evaluation}", "other", "--plot", "nowhere/a.svg"),
        says=("--plot: nowhere/a.svg lies in a folder that is not there",),
        exit_code=2,
    ),
    Mistake(
        name="comparing with a confidence in percent",
        command=("compare", "{evaluation}", "other", "--confidence", "95"),
        says=("--confidence", "95"),
        exit_code=2,
    ),
    Mistake(
        name="comparing with a registered model before any run",
        command=("compare", "models:/calm@champion", "{evaluation}"),
        says=("home: no run here yet; `calm run` trains and registers a model",),
    ),
    Mistake(
        name="inspecting a split that there is not",
        command=("inspect", "{dataset}", "--split", "test"),
        says=("--split: there is no split 'test'; there are train, validation",),
        exit_code=2,
    ),
    Mistake(
        name="inspecting rows without their shard",
        command=("inspect", "{dataset}", "--rows", "3,7-9"),
        says=("--rows: expected a shard and its rows, like train/part-00000-00000.parquet:3,7-9 (got 3,7-9)",),
        exit_code=2,
    ),
    Mistake(
        name="inspecting rows of a shard that there is not",
        command=("inspect", "{dataset}", "--rows", "train/other.parquet:3"),
        says=("--rows: {dataset} has no shard train/other.parquet",),
        exit_code=2,
    ),
    Mistake(
        name="inspecting rows behind the last one",
        command=("inspect", "{dataset}", "--rows", "train/part-00000-00000.parquet:3,999999"),
        says=("--rows: train/part-00000-00000.parquet has the rows 0 to ", "(got 3,999999)"),
        exit_code=2,
    ),
    Mistake(
        name="inspecting rows as JSON",
        command=("inspect", "{dataset}", "--rows", "train/part-00000-00000.parquet:3", "--json"),
        says=("--rows shows text; leave out --json",),
        exit_code=2,
    ),
    Mistake(
        name="inspecting a dataset with a damaged shard",
        command=("inspect", "{dataset}", "--split", "validation"),
        arrange=_damage_held_out_text,
        says=("{dataset}/validation/", "damaged"),
    ),
    Mistake(
        name="inspecting a mixture whose dataset is gone",
        command=("data", "inspect", "mixture"),
        arrange=_mix_and_lose,
        says=("{dataset}: the dataset artifact is missing",),
    ),
    Mistake(
        name="verifying a mixture whose dataset is gone",
        command=("verify", "mixture", "--json"),
        arrange=_mix_and_lose,
        says=("{dataset}: the artifact is missing",),
    ),
]
