"""The registration stage: a new version of the registered model, with its lineage."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calm_core.config import RegistryConfig
from calm_core.errors import ArtifactError, CalmError
from calm_core.registry.aliases import EVALUATION_TAG, MEASURED_TAG, Aliases, Decision, may_be_deleted
from calm_core.registry.card import model_card
from calm_core.registry.evidence import Evidence
from calm_core.registry.load import calm_generator
from calm_core.registry.retraining import DATASET_TAG, DATASET_URI_TAG
from calm_core.registry.wheel import needed_packages, write_wheel
from calm_core.shown import holds_secret
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact, ArtifactWriter
from calm_core.store.code_version import code_version
from calm_core.store.facts import (
    AutoencoderFacts,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    MixtureFacts,
    RegistrationFacts,
)
from calm_core.telemetry.mlflow_run import kubeflow_run, parent_run_id
from calm_core.telemetry.mlflow_store import TRACKING_URI_VARIABLE, outlasting
from calm_core.telemetry.stage import Stage
from calm_core.weights.lineage import autoencoder_of
from calm_core.weights.registered import (
    AUTOENCODER_FOLDER,
    CALM_FOLDER,
    DATA_FOLDER,
    EVALUATION_FOLDER,
    LOADER_MODULE,
    registered_artifacts,
)
from calm_core.weights.versions import versions_of

STAGE = "register"
_PROMPT = "Once upon a time"  # the example of a model whose evaluation wrote nothing
_REPORT_TAG = "calm.report"
"""Tag with where the pictures and texts of the evaluation are, for MLflow and for people."""
_MEASURED = {"model", "brierlm", "autoencoder_accuracy", "evaluated"}  # what lists of versions tell
_WHEELS_FOLDER = "wheels"


def register_model(
    config: RegistryConfig,
    calm_uri: str,
    evaluation_uri: str,
    output_uri: str,
    *,
    dataset_uri: str = "",
    autoencoder_uri: str = "",
    overwrite: bool = False,
) -> Artifact[RegistrationFacts]:
    """Register a scored model in MLflow as challenger, and let it be champion if the rules allow it (`gate.judge`).

    A model with the same weights and evaluation that is registered already keeps its version, so the stage can run
    again at any time, also side by side, and its answer is never older than the registry. Whatever version it answers
    has been loaded; one whose files are gone or damaged is left as it is, and the model registered anew.

    Args:
        config: Names of the model and its aliases, and the rules of promotion.
        calm_uri: A `calm` artifact.
        evaluation_uri: Its scores.
        output_uri: Where the `registration` artifact is written.
        dataset_uri: The dataset or mixture of the evaluation, which the model card tells of, and on which a champion is
            scored that was not scored like this model; unset, neither is done. Where the model was trained on it, the
            version notes where it lies, for `retraining`.
        autoencoder_uri: The autoencoder of the model; unset, where it was when the model was trained.
        overwrite: Whether another registration that lies there is replaced (see `ArtifactWriter`).

    Raises:
        CalmError: MLFLOW_TRACKING_URI is not set, MLflow fails, the evaluation is of another model, or what has been
            registered cannot be loaded.
    """
    settings = config.model_dump(mode="json")
    with Stage(STAGE, settings) as stage:
        if not os.environ.get(TRACKING_URI_VARIABLE):
            raise CalmError(f"{STAGE}: set {TRACKING_URI_VARIABLE} to the MLflow server that holds the registry")
        scored = ScoredModel.open(calm_uri, evaluation_uri, autoencoder_uri, dataset_uri)
        ArtifactWriter(output_uri, RegistrationFacts, settings, scored.digests, overwrite=overwrite).check()
        stage.begin()
        scored.check_files()  # also where the model is registered already, and nothing else would read them
        number = outlasting(STAGE, lambda: _version_of(config, scored, stage))
        evidence = Evidence(config.model_name, number, scored.evaluation, dataset_uri, stage)
        decided = outlasting(STAGE, lambda: Aliases(config, evidence.decide).decide(number))
        facts = RegistrationFacts(
            model_name=config.model_name,
            version=number,
            alias=config.alias,
            model_uri=_uri(config.model_name, number),
            **dict(decided),
        )
        with ArtifactWriter(output_uri, RegistrationFacts, settings, scored.digests, overwrite=overwrite) as writer:
            writer.facts = facts
            writer.write("registration.json", json.dumps(facts.part("results"), indent=1).encode())
        registration = Artifact(output_uri, RegistrationFacts)
        if dataset := scored.dataset_of_training:
            outlasting(STAGE, lambda: _note_dataset(config, number, dataset))
        stage.finish(registration, f"{config.model_name} version {number}; {decided.reason}")
    return registration


@dataclass(frozen=True)
class ScoredModel:
    """A CALM model, the autoencoder that it was trained on, its scores, and the data if they are named."""

    autoencoder: Artifact[AutoencoderFacts]
    calm: Artifact[CalmFacts]
    evaluation: Artifact[EvaluationFacts]
    dataset: Artifact[Facts] | None = None

    @classmethod
    def open(
        cls, calm_uri: str, evaluation_uri: str, autoencoder_uri: str = "", dataset_uri: str = ""
    ) -> "ScoredModel":
        """The artifacts.

        Raises:
            ArtifactError: One is unusable, or the evaluation is of another model or dataset.
        """
        calm = Artifact(calm_uri, CalmFacts)
        autoencoder, evaluation = autoencoder_of(calm, autoencoder_uri), Artifact(evaluation_uri, EvaluationFacts)
        dataset = Artifact(dataset_uri, DatasetFacts, MixtureFacts) if dataset_uri else None
        scored = cls(autoencoder, calm, evaluation, dataset)
        if not {"autoencoder", "calm", "dataset"} <= scored.evaluation.manifest.parents.keys():
            raise ArtifactError(
                f"{evaluation_uri}: is no evaluation of a CALM model ({scored.evaluation.facts.model}), "
                "and no other model is registered"
            )
        for name, artifact in (("autoencoder", scored.autoencoder), ("calm", scored.calm)):
            if scored.evaluation.manifest.parents.get(name) != artifact.digest:
                raise ArtifactError(f"{evaluation_uri}: is the evaluation of another {name} than {artifact.uri}")
        if dataset and dataset.digest != evaluation.manifest.parents["dataset"]:
            raise ArtifactError(f"{evaluation_uri}: was not measured on {dataset_uri}; name the dataset that it was")
        return scored

    def check_files(self) -> None:
        """Check every file of the model and its evaluation.

        Raises:
            ArtifactError: One is missing or damaged.
        """
        for artifact in (self.autoencoder, self.calm, self.evaluation):
            artifact.check_files()

    @property
    def digests(self) -> dict[str, str]:
        """The digests of the model and its evaluation by kind."""
        return {a.manifest.kind: a.digest for a in (self.autoencoder, self.calm, self.evaluation)}

    @property
    def dataset_of_training(self) -> str:
        """Where the dataset lies that the model was trained and scored on, if it can be extended; else empty."""
        if self.dataset is None or self.dataset.digest != self.calm.manifest.parents.get("dataset"):
            return ""
        uri = storage.real(self.dataset.uri)
        return uri if self.dataset.manifest.kind == DatasetFacts.kind and not holds_secret(uri) else ""

    def lineage(self) -> dict[str, str]:
        """Tags that say where the model comes from, and how good it is."""
        score = self.evaluation.facts.brierlm
        tags = {f"calm.{kind}_digest": digest for kind, digest in self.digests.items()}
        tags[DATASET_TAG] = self.evaluation.manifest.parents["dataset"]
        tags["calm.code_version"] = code_version()
        tags["calm.brierlm"] = f"{score.value:.4f} {score.interval(4)}"
        tags[MEASURED_TAG] = json.dumps(self.evaluation.facts.model_dump(mode="json", include=_MEASURED))
        if parent := parent_run_id():
            tags["calm.pipeline_run"] = parent
        return tags | kubeflow_run()


def _note_dataset(config: RegistryConfig, number: str, uri: str) -> None:
    """Note where a version's dataset lies now: it may have been made again elsewhere."""
    from mlflow import MlflowClient

    MlflowClient().set_model_version_tag(config.model_name, number, DATASET_URI_TAG, uri)


def _uri(model_name: str, number: str) -> str:
    return f"models:/{model_name}/{number}"


def _version_of(config: RegistryConfig, scored: ScoredModel, stage: Stage) -> str:
    """The number of the version with this evaluation (and so with this model), which is made if there is none.

    MLflow has no transaction that could look for a version and make one. But versions are numbered in their order, and
    one is seen with its tags by all who look later: so the first one that can be loaded stays, and the others are
    withdrawn by whoever sees them, unless they have been decided about.

    Raises:
        CalmError: What has been registered cannot be loaded; it is withdrawn.
    """
    found = _versions_of(config.model_name, scored)
    if not found:
        stage.report(note="logging the model")
        made = _new_version(config, scored, stage)
        found = _versions_of(config.model_name, scored)
    if not found:
        try:
            _check(_uri(config.model_name, made), scored)  # says what is wrong with it
        finally:
            _withdraw(config, made)
        raise CalmError(f"{_uri(config.model_name, made)}: could not be loaded for a moment; register it again")
    first, *others = found
    for number in others:
        _withdraw(config, number)
    return first


def _versions_of(model_name: str, scored: ScoredModel) -> list[str]:
    """Versions with this evaluation: the first one that can be loaded, and those that came after it.

    Raises:
        CalmError: Whether one can be loaded cannot be told now.
    """
    from mlflow import MlflowClient  # import costs seconds: only where it is used

    digest = scored.evaluation.digest
    versions = versions_of(MlflowClient(), model_name)
    found = [number for number, version in versions.items() if version.tags.get(EVALUATION_TAG) == digest]
    for place, number in enumerate(found):
        try:
            _check(_uri(model_name, number), scored)
            return found[place:]
        except CalmError as error:
            if error.can_pass:
                raise
    return []


def _withdraw(config: RegistryConfig, number: str) -> None:
    """Delete a version that was made at the same time as another one of the same.

    One that has been decided about, or that somebody has given an alias, stays.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    with may_be_deleted():
        version = client.get_model_version(config.model_name, number)
        decision = Decision.read(version.tags)
        if decision and decision.state == "undecided" and {*version.aliases} <= {config.challenger_alias}:
            client.delete_model_version(config.model_name, number)


def _check(uri: str, scored: ScoredModel) -> None:
    """Load a registered model.

    Raises:
        CalmError: It cannot be loaded, or is another one.
    """
    with registered_artifacts(uri) as (autoencoder, calm):
        if (autoencoder.digest, calm.digest) != (scored.autoencoder.digest, scored.calm.digest):
            raise CalmError(f"{uri}: holds another model than the one that was registered; register the model again")
        calm_generator(calm, autoencoder)


def _new_version(config: RegistryConfig, scored: ScoredModel, stage: Stage) -> str:
    """Log the model to a run and register it; returns the version's number."""
    import mlflow
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from calm_core.registry.served import COLUMN, SIGNATURE

    prompts = [sample.prompt for sample in scored.evaluation.facts.samples] or [_PROMPT]
    example = pd.DataFrame({COLUMN: prompts[:1]})
    lineage = scored.lineage()
    logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)  # it misses the label of our wheel
    with _model_folder(scored) as (folder, requirement), _current(stage.run.run_id):
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module=LOADER_MODULE,
            data_path=str(folder),
            signature=SIGNATURE,
            input_example=(example, {"max_new_tokens": 16}),
            # pip looks for the folder beside the file that names it, wherever it is called.
            pip_requirements=[f"--find-links {DATA_FOLDER}/{_WHEELS_FOLDER}", requirement, *needed_packages()],
            tags=lineage,
        )
    report = f"runs:/{logged.run_id}/{logged.name}/{DATA_FOLDER}/{EVALUATION_FOLDER}/report.html"
    card = model_card(config.model_name, report, scored.evaluation, scored.calm, scored.autoencoder, scored.dataset)
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(config.model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # mlflow.register_model takes no description, and whoever stopped after it would leave a version without one.
    version = client.create_model_version(
        config.model_name,
        logged.model_uri,
        logged.run_id,
        # A decision with the version, so that nobody sees it without.
        tags=lineage | {_REPORT_TAG: report} | Decision.begun(config).tags,
        description=card,
        model_id=logged.model_id,
        await_creation_for=0,  # another process may have withdrawn it, and its files are there
    )
    return str(version.version)


@contextmanager
def _current(run_id: str) -> Iterator[None]:
    """Make a run MLflow's current one, in whatever experiment; MLflow refuses any but the caller's current one."""
    import mlflow
    from mlflow.tracking import fluent

    before, fluent._active_experiment_id = fluent._active_experiment_id, None
    try:
        with mlflow.start_run(run_id=run_id):
            yield
    finally:
        fluent._active_experiment_id = before


@contextmanager
def _model_folder(scored: ScoredModel) -> Iterator[tuple[Path, str]]:
    """A folder with what `registry.load` reads, the evaluation and this library, while the block lasts.

    Yields:
        The folder, and the requirement of the library that lies in it.
    """
    with tempfile.TemporaryDirectory(prefix="calm-registered-") as parent:
        folder = Path(parent) / Path(DATA_FOLDER).name  # MLflow keeps this name
        _download(scored.autoencoder, folder / AUTOENCODER_FOLDER)
        _download(scored.calm, folder / CALM_FOLDER)
        _download(scored.evaluation, folder / EVALUATION_FOLDER)
        yield folder, write_wheel(folder / _WHEELS_FOLDER)


def _download(artifact: Artifact[Facts], folder: Path) -> None:
    """Copy an artifact to local disk, manifest included, so that whoever loads it can check it."""
    for path in (MANIFEST_NAME, *(entry.path for entry in artifact.manifest.files)):
        storage.copy(storage.child(artifact.uri, path), storage.child(str(folder), path))
