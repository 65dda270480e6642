"""The training stage, to be called from Python, the command line, or a Kubeflow component."""

from calm_core.config import AutoencoderConfig, CalmConfig, TransformerConfig
from calm_core.errors import CalmError
from calm_core.store.artifact import Artifact
from calm_core.telemetry import mlflow_run
from calm_core.telemetry.progress import report, reported
from calm_core.training.launcher import CONFIGS, WorkerSpec, launch


def train(
    config: AutoencoderConfig | CalmConfig | TransformerConfig,
    dataset_uri: str,
    output_uri: str,
    *,
    seed: int,
    checkpoint_root: str,
    autoencoder_uri: str = "",
) -> Artifact:
    """Train a model on a data set; the type of the config says which.

    Args:
        config: Settings of the model and its training.
        dataset_uri: A `dataset` artifact.
        output_uri: Where the artifact is written; its kind is `autoencoder`, `calm` or `transformer`.
        seed: Of the initial weights, the order of the data and the noise.
        checkpoint_root: URL of the folder below which checkpoints are kept while training.
        autoencoder_uri: The trained autoencoder that a CALM model predicts the vectors of.

    Raises:
        CalmError: An input is unusable, or a rank failed.
    """
    kind = next(kind for kind, config_type in CONFIGS.items() if isinstance(config, config_type))
    spec = WorkerSpec(
        kind=kind,
        config=config,
        dataset_uri=dataset_uri,
        autoencoder_uri=autoencoder_uri,
        output_uri=output_uri,
        checkpoint_root=checkpoint_root,
        seed=seed,
    )
    settings = config.model_dump(mode="json") | {"seed": seed}
    with reported(spec.stage), mlflow_run.stage_run(spec.stage, settings) as run:
        # Checked here, before ranks are started, so that a bad input is one clear line.
        Artifact(dataset_uri, "dataset", "mixture")
        if (kind == "calm") != bool(autoencoder_uri):
            raise CalmError(f"{spec.stage}: an autoencoder is needed for CALM, and for no other model")
        if autoencoder_uri:
            Artifact(autoencoder_uri, "autoencoder")
        launch(spec.model_copy(update={"run_id": run.run_id}))
        artifact = Artifact(output_uri, kind)
        run.set_tags({mlflow_run.DIGEST_TAG: artifact.digest, **artifact.manifest.parents})
    report(spec.stage, "finished", note=artifact.manifest.results["headline"])
    return artifact
