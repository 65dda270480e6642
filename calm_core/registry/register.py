"""The registration stage: a new version of the registered model, with its lineage."""

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from calm_core.config import RegistryConfig
from calm_core.errors import ArtifactError, CalmError
from calm_core.registry.load import DEFAULT_PARAMETERS
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact, ArtifactWriter
from calm_core.store.code_version import code_version
from calm_core.telemetry import mlflow_run
from calm_core.telemetry.progress import report, reported

STAGE = "register"
_EVALUATION_TAG = "calm.evaluation_digest"
_DISTRIBUTION = "calm-pipelines"
_RUNTIME_PACKAGES = ("torch", "tokenizers", "safetensors", "pydantic", "fsspec", "numpy", "mlflow")


def register_model(
    config: RegistryConfig, autoencoder_uri: str, calm_uri: str, evaluation_uri: str, output_uri: str
) -> Artifact:
    """Log the model to MLflow, register it, and point the alias to its version.

    A model with the same weights and evaluation that is registered already keeps its version, so the stage can run
    again at any time, and its answer is never older than the registry.

    Returns:
        A `registration` artifact; its results name the model, the version and its URI.

    Raises:
        CalmError: MLFLOW_TRACKING_URI is not set, or the evaluation is of another model.
    """
    settings = config.model_dump(mode="json")
    with reported(STAGE):
        if not os.environ.get(mlflow_run.TRACKING_URI_VARIABLE):
            raise CalmError(
                f"{STAGE}: set {mlflow_run.TRACKING_URI_VARIABLE} to the MLflow server that holds the registry"
            )
        artifacts = {
            "autoencoder": Artifact(autoencoder_uri, "autoencoder"),
            "calm": Artifact(calm_uri, "calm"),
            "evaluation": Artifact(evaluation_uri, "evaluation"),
        }
        _refuse_strangers(artifacts)
        lineage = {f"calm.{name}_digest": artifact.digest for name, artifact in artifacts.items()}
        lineage["calm.dataset_digest"] = artifacts["evaluation"].manifest.parents["dataset"]
        lineage["calm.code_version"] = code_version()
        score = artifacts["evaluation"].manifest.results["brierlm"]
        lineage["calm.brierlm"] = f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"
        with mlflow_run.stage_run(STAGE, settings) as run:
            report(STAGE, note="logging the model")
            if parent := os.environ.get(mlflow_run.PARENT_RUN_VARIABLE):
                lineage["calm.pipeline_run"] = parent
            number = _find_version(config, artifacts["evaluation"].digest)
            if number is None:
                number = _log_and_register(config, artifacts, lineage, run.run_id)
            _point_alias(config, number)
            parents = {name: artifact.digest for name, artifact in artifacts.items()}
            with ArtifactWriter(output_uri, "registration", settings, parents) as writer:
                results = {"model_name": config.model_name, "version": number, "alias": config.alias}
                results["model_uri"] = f"models:/{config.model_name}/{number}"
                writer.results |= results
                writer.write("registration.json", json.dumps(results, indent=1).encode())
        report(STAGE, "finished", note=f"{config.model_name} version {number}, alias {config.alias}")
    return Artifact(output_uri, "registration")


def _refuse_strangers(artifacts: dict[str, Artifact]) -> None:
    for name in ("autoencoder", "calm"):
        if artifacts["evaluation"].manifest.parents[name] != artifacts[name].digest:
            raise ArtifactError(
                f"{artifacts['evaluation'].uri}: is the evaluation of another {name} than {artifacts[name].uri}"
            )


def _log_and_register(
    config: RegistryConfig, artifacts: dict[str, Artifact], lineage: dict[str, str], run_id: str
) -> str:
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(
            [
                ParamSpec(name, DataType.double if isinstance(value, float) else DataType.long, value)
                for name, value in DEFAULT_PARAMETERS.items()
            ]
        ),
    )
    prompt = artifacts["evaluation"].manifest.config["prompts"][0]
    requirements = [f"{name}=={version(name).split('+')[0]}" for name in (_DISTRIBUTION, *_RUNTIME_PACKAGES)]
    with tempfile.TemporaryDirectory(prefix="calm-model-") as folder, mlflow.start_run(run_id=run_id):
        for name in ("autoencoder", "calm"):
            _download(artifacts[name], Path(folder) / name)
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module="calm_core.registry.load",
            data_path=folder,
            signature=signature,
            input_example=(pd.DataFrame({"prompt": [prompt]}), {"max_new_tokens": 16}),
            pip_requirements=requirements,
            tags=lineage,
        )
    return str(mlflow.register_model(logged.model_uri, config.model_name, tags=lineage).version)


def _find_version(config: RegistryConfig, evaluation_digest: str) -> str | None:
    """The version that was registered with this evaluation (and so with this model), if there is one."""
    from mlflow import MlflowClient

    query = f"name = '{config.model_name}' and tags.`{_EVALUATION_TAG}` = '{evaluation_digest}'"
    versions = MlflowClient().search_model_versions(query)
    return str(versions[0].version) if versions else None


def _point_alias(config: RegistryConfig, number: str) -> None:
    from mlflow import MlflowClient

    MlflowClient().set_registered_model_alias(config.model_name, config.alias, number)


def _download(artifact: Artifact, folder: Path) -> None:
    """Copy a checked artifact to local disk, manifest included, so that whoever loads it can check it again."""
    folder.mkdir()
    for entry in artifact.manifest.files:
        (folder / entry.path).write_bytes(artifact.read(entry.path))
    storage.copy(storage.join(artifact.uri, MANIFEST_NAME), str(folder / MANIFEST_NAME))
