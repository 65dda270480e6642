"""The registration stage: a new version of the registered model, with its lineage."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from calm_core.config import RegistryConfig
from calm_core.errors import ArtifactError, CalmError
from calm_core.registry.aliases import Aliases, Measured
from calm_core.registry.files import AUTOENCODER_FOLDER, CALM_FOLDER, LOADER_MODULE, registered_artifacts
from calm_core.registry.load import calm_generator
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact, ArtifactWriter
from calm_core.store.code_version import code_version
from calm_core.store.facts import AutoencoderFacts, CalmFacts, EvaluationFacts, Facts, RegistrationFacts
from calm_core.telemetry.mlflow_run import parent_run_id
from calm_core.telemetry.mlflow_store import TRACKING_URI_VARIABLE, mlflow_answers
from calm_core.telemetry.stage import Stage
from calm_core.weights.lineage import autoencoder_of

STAGE = "register"
_EVALUATION_TAG = "calm.evaluation_digest"
_PROMPT = "Once upon a time"  # the example of a model whose evaluation wrote nothing
_DISTRIBUTION = "calm-pipelines"
_RUNTIME_PACKAGES = ("torch", "tokenizers", "safetensors", "pydantic", "fsspec", "numpy", "pandas", "mlflow-skinny")


def register_model(
    config: RegistryConfig,
    calm_uri: str,
    evaluation_uri: str,
    output_uri: str,
    *,
    autoencoder_uri: str = "",
    overwrite: bool = False,
) -> Artifact[RegistrationFacts]:
    """Register a scored model in MLflow, and point the alias to its version if that is better (`Aliases`).

    A model with the same weights and evaluation that is registered already keeps its version, so the stage can run
    again at any time, also side by side, and its answer is never older than the registry. Whatever version it answers
    has been loaded; one whose files are gone or damaged is left as it is, and the model registered anew.

    Args:
        config: Names of the model and the alias, and when the alias moves.
        calm_uri: A `calm` artifact.
        evaluation_uri: Its scores.
        output_uri: Where the `registration` artifact is written.
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
        scored = ScoredModel.open(calm_uri, evaluation_uri, autoencoder_uri)
        ArtifactWriter(output_uri, RegistrationFacts, settings, scored.digests, overwrite=overwrite).check()
        stage.begin()
        scored.check_files()  # also where the model is registered already, and nothing else would read them
        with mlflow_answers():
            number = _find_version(config.model_name, scored)
            if number is None:
                stage.report(note="logging the model")
                number = _only_version(config.model_name, scored, _new_version(config.model_name, scored, stage))
            aliases = Aliases(config, lambda other: _is_whole(_uri(config.model_name, other)))
            promotion = aliases.promote(number, Measured.of(scored.evaluation.facts))
        facts = RegistrationFacts(
            model_name=config.model_name,
            version=number,
            alias=config.alias,
            model_uri=_uri(config.model_name, number),
            promoted=promotion.promoted,
            reason=promotion.reason,
        )
        with ArtifactWriter(output_uri, RegistrationFacts, settings, scored.digests, overwrite=overwrite) as writer:
            writer.facts = facts
            writer.write("registration.json", json.dumps(facts.part("results"), indent=1).encode())
        registration = Artifact(output_uri, RegistrationFacts)
        stage.finish(registration, f"{config.model_name} version {number}; {promotion.reason}")
    return registration


@dataclass(frozen=True)
class ScoredModel:
    """A CALM model, the autoencoder that it was trained on, and its scores."""

    autoencoder: Artifact[AutoencoderFacts]
    calm: Artifact[CalmFacts]
    evaluation: Artifact[EvaluationFacts]

    @classmethod
    def open(cls, calm_uri: str, evaluation_uri: str, autoencoder_uri: str = "") -> "ScoredModel":
        """The three artifacts.

        Raises:
            ArtifactError: One is unusable, or the evaluation is of another model.
        """
        calm = Artifact(calm_uri, CalmFacts)
        scored = cls(autoencoder_of(calm, autoencoder_uri), calm, Artifact(evaluation_uri, EvaluationFacts))
        if not {"autoencoder", "calm", "dataset"} <= scored.evaluation.manifest.parents.keys():
            raise ArtifactError(
                f"{evaluation_uri}: is no evaluation of a CALM model ({scored.evaluation.facts.model}), "
                "and no other model is registered"
            )
        for name, artifact in (("autoencoder", scored.autoencoder), ("calm", scored.calm)):
            if scored.evaluation.manifest.parents.get(name) != artifact.digest:
                raise ArtifactError(f"{evaluation_uri}: is the evaluation of another {name} than {artifact.uri}")
        return scored

    def check_files(self) -> None:
        """Check every file of the three.

        Raises:
            ArtifactError: One is missing or damaged.
        """
        for artifact in (self.autoencoder, self.calm, self.evaluation):
            artifact.check_files()

    @property
    def digests(self) -> dict[str, str]:
        """The digests by kind."""
        return {a.manifest.kind: a.digest for a in (self.autoencoder, self.calm, self.evaluation)}

    def lineage(self) -> dict[str, str]:
        """Tags that say where the model comes from, and how good it is."""
        score = self.evaluation.facts.brierlm
        tags = {f"calm.{kind}_digest": digest for kind, digest in self.digests.items()}
        tags["calm.dataset_digest"] = self.evaluation.manifest.parents["dataset"]
        tags["calm.code_version"] = code_version()
        tags["calm.brierlm"] = f"{score.value:.4f} {score.interval(4)}"
        if parent := parent_run_id():
            tags["calm.pipeline_run"] = parent
        return tags


def _uri(model_name: str, number: str) -> str:
    return f"models:/{model_name}/{number}"


def _find_version(model_name: str, scored: ScoredModel, checked: str = "") -> str | None:
    """The first version that was registered with this evaluation (and so with this model) and can be loaded, if any.

    Args:
        model_name: Name of the registered model.
        scored: The model.
        checked: A version that is known to be so.
    """
    from mlflow import MlflowClient  # import costs seconds: only where it is used

    # Of all models: a name in the filter would have to be quoted.
    found = MlflowClient().search_model_versions(f"tags.`{_EVALUATION_TAG}` = '{scored.evaluation.digest}'")
    for number in sorted((str(each.version) for each in found if each.name == model_name), key=int):
        with suppress(CalmError):
            if number != checked:
                _check(_uri(model_name, number), scored)
            return number
    return None


def _check(uri: str, scored: ScoredModel) -> None:
    """Load a registered model.

    Raises:
        CalmError: It cannot be loaded, or is another one.
    """
    with registered_artifacts(uri) as (autoencoder, calm):
        if (autoencoder.digest, calm.digest) != (scored.autoencoder.digest, scored.calm.digest):
            raise CalmError(f"{uri}: holds another model than the one that was registered; register the model again")
        calm_generator(calm, autoencoder)


def _is_whole(uri: str) -> bool:
    """Whether the files of a registered model are there and undamaged.

    Raises:
        CalmError: That cannot be told now.
    """
    try:
        with registered_artifacts(uri) as artifacts:
            for artifact in artifacts:
                artifact.check_files()
    except CalmError as error:
        if error.can_pass:
            raise
        return False
    return True


def _only_version(model_name: str, scored: ScoredModel, new: str) -> str:
    """The version that stays, of those that were registered with this evaluation at the same time.

    MLflow has no transaction that could look for a version and make one. But versions are numbered in their order, and
    one is seen with its tags by all who look later: so the first one stays, and whoever made a later one withdraws it.

    Args:
        model_name: Name of the registered model.
        scored: The model.
        new: The version that this process has just made.

    Raises:
        CalmError: What has been registered cannot be loaded; it is withdrawn.
    """
    from mlflow import MlflowClient

    first = None
    try:
        _check(_uri(model_name, new), scored)
        first = _find_version(model_name, scored, checked=new)
    finally:
        if first != new:
            MlflowClient().delete_model_version(model_name, new)
    assert first is not None  # the new one is among those found
    return first


def _new_version(model_name: str, scored: ScoredModel, stage: Stage) -> str:
    """Log the model to a run and register it; returns the version's number."""
    import mlflow
    import pandas as pd

    from calm_core.registry.served import COLUMN, SIGNATURE

    prompts = [sample.prompt for sample in scored.evaluation.facts.samples] or [_PROMPT]
    example = pd.DataFrame({COLUMN: prompts[:1]})
    lineage = scored.lineage()
    with _model_folder(scored) as folder, mlflow.start_run(run_id=stage.run.run_id):
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module=LOADER_MODULE,
            data_path=folder,
            signature=SIGNATURE,
            input_example=(example, {"max_new_tokens": 16}),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in (_DISTRIBUTION, *_RUNTIME_PACKAGES)],
            tags=lineage,
        )
    return str(mlflow.register_model(logged.model_uri, model_name, tags=lineage).version)


@contextmanager
def _model_folder(scored: ScoredModel) -> Iterator[str]:
    """A folder with what `registry.load` reads, while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="calm-model-") as folder:
        _download(scored.autoencoder, Path(folder) / AUTOENCODER_FOLDER)
        _download(scored.calm, Path(folder) / CALM_FOLDER)
        yield folder


def _download(artifact: Artifact[Facts], folder: Path) -> None:
    """Copy an artifact to local disk, manifest included, so that whoever loads it can check it."""
    for path in (MANIFEST_NAME, *(entry.path for entry in artifact.manifest.files)):
        storage.copy(storage.child(artifact.uri, path), storage.child(str(folder), path))
