"""The training stage, to be called from Python, the command line, or a Kubeflow component."""

from calm_core.errors import EXIT_INTERRUPTED, CalmError, ConfigError, Interrupted
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import ModelFacts
from calm_core.telemetry.stage import Stage
from calm_core.training.job import Job, ModelConfig, TrainingSpec, check_inputs
from calm_core.training.launcher import Ending, Launcher, TorchrunLauncher
from calm_core.training.tasks.make import TASKS


def train(
    config: ModelConfig,
    dataset_uri: str,
    output_uri: str,
    *,
    seed: int,
    checkpoint_root: str,
    autoencoder_uri: str = "",
    overwrite: bool = False,
    launcher: Launcher | None = None,
) -> Artifact[ModelFacts]:
    """Train a model on a dataset; the type of the config says which.

    Args:
        config: Settings of the model and its training.
        dataset_uri: A `dataset` or `mixture` artifact.
        output_uri: Where the artifact is written; its kind is that of the config.
        seed: Of the initial weights, the order of the data and the noise.
        checkpoint_root: URL of the folder below which checkpoints are kept while training.
        autoencoder_uri: The trained autoencoder that a CALM model predicts the vectors of.
        overwrite: Whether another model of its kind that lies there is replaced (see `ArtifactWriter`).
        launcher: How the ranks are started; unset, by torchrun on this machine.

    Raises:
        Interrupted: The job was asked to stop; running it again continues from its checkpoint.
        CalmError: An input is unusable, or a rank failed.
    """
    launcher = launcher or TorchrunLauncher()
    spec = TrainingSpec(
        kind=config.kind,
        config=config,
        dataset_uri=dataset_uri,
        autoencoder_uri=autoencoder_uri,
        output_uri=output_uri,
        overwrite=overwrite,
        seed=seed,
    )
    spec = check_inputs(spec)
    ArtifactWriter(output_uri, TASKS[config.kind].facts, spec.settings, spec.parents, overwrite=overwrite).check()
    job = Job.of(spec, checkpoint_root)
    job.check(output_uri)
    with Stage(spec.stage, spec.settings) as stage:
        _require_even_batches(spec, launcher.world_size(config.processes))
        job.write_spec(spec.model_copy(update={"run_id": stage.run.run_id}))
        headline = _headline(spec.stage, job, launcher.run(job.spec_uri, config.processes))
        artifact = Artifact(output_uri, TASKS[config.kind].facts)
        job.remove()
        stage.finish(artifact, headline)
    return artifact


def _require_even_batches(spec: TrainingSpec, ranks: int) -> None:
    config = spec.config
    if config.global_batch_size % (config.micro_batch_size * ranks):
        raise ConfigError(
            f"{spec.stage}: global_batch_size ({config.global_batch_size}) must be a multiple of micro_batch_size x "
            f"ranks ({config.micro_batch_size} x {ranks})"
        )


def _headline(stage: str, job: Job, ending: Ending) -> str:
    """The number that matters, as the ranks told it.

    Raises:
        CalmError: They did not finish: what a rank said of it, else what the launcher could see.
    """
    outcome = job.outcome()
    if ending.exit_code == 0:
        return outcome.message if outcome else ""
    if outcome and outcome.exit_code == EXIT_INTERRUPTED:
        raise Interrupted(outcome.message)
    unexplained = f"{stage}: a rank ended with exit code {ending.exit_code}; its last lines are in the log"
    told = outcome.message if outcome and outcome.exit_code else ""  # rank 0 may have finished, and another one not
    raise CalmError(told or ending.message or unexplained)
