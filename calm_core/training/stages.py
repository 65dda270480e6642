"""The training stages, to be called from Python, the command line, or a Kubeflow component."""

from calm_core import tracking
from calm_core.artifact import Artifact
from calm_core.config import AutoencoderConfig, CalmConfig
from calm_core.progress import report, reported
from calm_core.training.launch import WorkerSpec, launch


def train_autoencoder(
    config: AutoencoderConfig, dataset_uri: str, output_uri: str, *, seed: int, checkpoint_root: str
) -> Artifact:
    """Train the autoencoder on a data set.

    Args:
        config: Model and training settings.
        dataset_uri: A `dataset` artifact.
        output_uri: Where the `autoencoder` artifact is written.
        seed: Of the initial weights, the order of the data and the noise.
        checkpoint_root: Local or shared folder below which checkpoints are kept while training.

    Raises:
        CalmError: An input is unusable, or a rank failed.
    """
    spec = WorkerSpec(
        kind="autoencoder",
        stage="train-autoencoder",
        config=config,
        dataset_uri=dataset_uri,
        output_uri=output_uri,
        checkpoint_root=checkpoint_root,
        seed=seed,
        run_id="",
    )
    artifact = _train(spec)
    accuracy = artifact.manifest.results["validation_accuracy"]
    report(spec.stage, "finished", note=f"validation token accuracy {accuracy:.2%}")
    return artifact


def train_calm(
    config: CalmConfig,
    dataset_uri: str,
    autoencoder_uri: str,
    output_uri: str,
    *,
    seed: int,
    checkpoint_root: str,
) -> Artifact:
    """Train the CALM language model on a data set and a trained autoencoder; arguments as in `train_autoencoder`."""
    spec = WorkerSpec(
        kind="calm",
        stage="train-calm",
        config=config,
        dataset_uri=dataset_uri,
        autoencoder_uri=autoencoder_uri,
        output_uri=output_uri,
        checkpoint_root=checkpoint_root,
        seed=seed,
        run_id="",
    )
    artifact = _train(spec)
    loss = artifact.manifest.results["validation_energy_loss"]
    report(spec.stage, "finished", note=f"validation energy loss {loss:.4f}")
    return artifact


def _train(spec: WorkerSpec) -> Artifact:
    settings = spec.config.model_dump(mode="json") | {"seed": spec.seed}
    with reported(spec.stage), tracking.stage_run(spec.stage, settings) as run:
        # Checked here, before ranks are started, so that a bad input is one clear line.
        Artifact(spec.dataset_uri, "dataset")
        if spec.autoencoder_uri:
            Artifact(spec.autoencoder_uri, "autoencoder")
        launch(spec.model_copy(update={"run_id": run.run_id}))
        artifact = Artifact(spec.output_uri, spec.kind)
        run.set_tags({tracking.DIGEST_TAG: artifact.digest, **artifact.manifest.parents})
        return artifact
