"""The last stage of a run: a page that tells what was trained, whether it is better, and how one knows."""

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from calm_core.errors import ArtifactError, CalmError
from calm_core.evaluation.report import BASELINE_STAGES, MAIN_STAGES, PAGE_NAME, Verdict, WholeRun, render_report
from calm_core.report.times import stage_times
from calm_core.report.training import curves_of
from calm_core.shown import lines_of, listed
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import (
    AutoencoderFacts,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    RegistrationFacts,
    ReportFacts,
)
from calm_core.store.protocol import differences
from calm_core.telemetry.mlflow_run import COMMAND_VARIABLE, FLUSH_SECONDS, PARENT_RUN_VARIABLE, Run
from calm_core.telemetry.mlflow_store import TRACKING_URI_VARIABLE, mlflow_answers
from calm_core.telemetry.stage import Stage
from calm_core.weights.registered import registered_evaluation

STAGE = "report"


def report(
    dataset_uri: str,
    autoencoder_uri: str,
    calm_uri: str,
    evaluation_uri: str,
    registration_uri: str,
    output_uri: str,
    *,
    baseline_evaluation_uri: str = "",
    overwrite: bool = False,
) -> Artifact[ReportFacts]:
    """Write the page about a run, and add it to the runs of MLflow that it tells of.

    Its times are of this run, so the page is no part of the artifact's digest: what is reported on, is.

    Args:
        dataset_uri, autoencoder_uri, calm_uri, evaluation_uri, registration_uri: What the run has made.
        output_uri: Where the `report` artifact is written: report.html.
        baseline_evaluation_uri: The scores of the Transformer of the same run.
        overwrite: Whether another report that lies there is replaced (see `ArtifactWriter`).

    Raises:
        CalmError: An artifact is unusable, or they do not belong together.
    """
    dataset = Artifact(dataset_uri, DatasetFacts)
    autoencoder, calm = Artifact(autoencoder_uri, AutoencoderFacts), Artifact(calm_uri, CalmFacts)
    evaluation = Artifact(evaluation_uri, EvaluationFacts)
    registration = Artifact(registration_uri, RegistrationFacts)
    baseline = Artifact(baseline_evaluation_uri, EvaluationFacts) if baseline_evaluation_uri else None
    made = (dataset, autoencoder, calm, evaluation, registration)  # as the main stages do, in their order
    parents = {artifact.facts.kind: artifact.digest for artifact in made}
    digests = dict(zip(MAIN_STAGES, parents.values(), strict=True))
    if baseline:
        parents["baseline"] = baseline.digest
        of_baseline = (baseline.manifest.parents.get("transformer", ""), baseline.digest)
        digests |= dict(zip(BASELINE_STAGES, of_baseline, strict=True))
    with Stage(STAGE, {}) as stage:
        _require(evaluation, parents, "autoencoder", "calm", "dataset")
        _require(registration, parents, "calm", "evaluation")
        ArtifactWriter(output_uri, ReportFacts, {}, parents, overwrite=overwrite).check()
        stage.begin()
        parent, command = os.environ.get(PARENT_RUN_VARIABLE, ""), os.environ.get(COMMAND_VARIABLE, "")
        compared = _Compared.of(evaluation.facts, registration.facts, baseline.facts if baseline else None)
        run = WholeRun(
            dataset=dataset.facts,
            models={"autoencoder": autoencoder.facts, "CALM": calm.facts},
            registration=registration.facts,
            **compared.scores,
            not_compared=compared.left_out,
            stages=stage_times(digests, stage.run.run_id, parent),
            command=command,
            code_version=calm.manifest.code_version,
            written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        )
        html = render_report(
            evaluation.facts,
            curves_of(autoencoder) | curves_of(calm),
            evaluation.manifest.config,
            {"data": dataset.manifest.config, "autoencoder": autoencoder.manifest.config, "CALM": calm.manifest.config},
            parents,
            run,
        )
        verdict = Verdict.of(registration.facts)
        with ArtifactWriter(output_uri, ReportFacts, {}, parents, overwrite=overwrite) as writer:
            writer.facts = ReportFacts(
                headline=verdict.headline,
                reason=verdict.reason,
                page=writer.write_aside(PAGE_NAME, html.encode()),
                stages=list(run.stages),
                command=lines_of(command),
            )
        stage.run.log_metrics(_numbers(evaluation.facts, calm.facts))
        stage.run.log_text(html, PAGE_NAME)
        for run_id in filter(None, (parent, _run_of(registration.facts))):
            told = Run(run_id, STAGE)
            told.log_text(html, PAGE_NAME)
            told.close(FLUSH_SECONDS)
        written = Artifact(output_uri, ReportFacts)
        stage.finish(written, verdict.headline)
    return written


@dataclass(frozen=True)
class _Compared:
    """What a model's scores are compared with, by the names of `WholeRun`, and why others are left out."""

    scores: dict[str, EvaluationFacts]
    left_out: list[str]

    @classmethod
    def of(
        cls, evaluation: EvaluationFacts, registration: RegistrationFacts, baseline: EvaluationFacts | None
    ) -> "_Compared":
        compared = cls({}, [])
        for name, other in {"champion": _champion(registration), "baseline": baseline}.items():
            if other and (found := differences(evaluation.protocol, other.protocol)):
                told = listed([setting.replace("_", " ") for setting in found], most=3)
                compared.left_out.append(f"The {name} was scored with another {told}, so it is left out")
            elif other:
                compared.scores[name] = other
        return compared


def _champion(registration: RegistrationFacts) -> EvaluationFacts | None:
    """The scores that the version carries which was champion before; None where none was, or it carries none."""
    if registration.champion_uri:
        with suppress(CalmError), registered_evaluation(registration.champion_uri) as evaluation:
            return evaluation.facts if evaluation else None
    return None


def _require(
    artifact: Artifact[EvaluationFacts] | Artifact[RegistrationFacts], of: dict[str, str], *kinds: str
) -> None:
    for kind in kinds:
        if artifact.manifest.parents.get(kind) != of[kind]:
            raise ArtifactError(f"{artifact.uri}: is the {artifact.facts.kind} of another {kind}; name its own")


def _run_of(registration: RegistrationFacts) -> str:
    """MLflow's id of the run that has registered a version; empty where none is known, or MLflow is away."""
    if os.environ.get(TRACKING_URI_VARIABLE):
        from mlflow import MlflowClient  # import costs seconds: only where it is used

        with suppress(CalmError), mlflow_answers():
            version = MlflowClient().get_model_version(registration.model_name, registration.version)
            return str(version.run_id or "")
    return ""


def _numbers(evaluation: EvaluationFacts, calm: CalmFacts) -> dict[str, float]:
    """The headline numbers of a run, also where its evaluation came from the cache and told MLflow nothing."""
    trained = {name: getattr(calm, name) for name in ("parameters", "trained_tokens", "seconds")}
    return evaluation.metrics() | {name: value for name, value in trained.items() if value is not None}
