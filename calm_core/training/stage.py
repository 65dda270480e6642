"""The training stage, to be called from Python, the command line, or a Kubeflow component."""

import signal
from contextlib import suppress
from pathlib import Path

from calm_core.config import TrainingConfig
from calm_core.errors import (
    EXIT_INTERRUPTED,
    EXIT_WRONG_SETTINGS,
    ArtifactError,
    CalmError,
    ConfigError,
    Interrupted,
    StorageError,
    first_line,
)
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import ModelFacts
from calm_core.store.lock import FolderLock
from calm_core.telemetry.processes import SIGNALLED, killed_by
from calm_core.telemetry.progress import report
from calm_core.telemetry.stage import Stage
from calm_core.training.job import Job, ModelConfig, TrainingSpec, check_inputs
from calm_core.training.launcher import EXIT_NO_MEETING, Ending, Launcher, Nodes, TorchrunLauncher, require_nodes
from calm_core.training.tasks.make import TASKS
from calm_core.training.unfinished import how_it_begins
from calm_core.weights.initial import INITIAL_WEIGHTS

_LOG, _POINTS = ".log", ".points.jsonl"


def train(
    config: ModelConfig,
    dataset_uri: str,
    output_uri: str,
    *,
    seed: int,
    checkpoint_root: str,
    autoencoder_uri: str = "",
    overwrite: bool = False,
    resume: bool = False,
    initial_digest: str = "",
    launcher: Launcher | None = None,
    log_folder: str = "",
) -> Artifact[ModelFacts]:
    """Train a model on a dataset; the type of the config says which.

    An unfinished training of the same settings and inputs goes on from its checkpoint.

    Args:
        config: Settings of the model and its training.
        dataset_uri: A `dataset` or `mixture` artifact.
        output_uri: Where the artifact is written; its kind is that of the config.
        seed: Of the initial weights, the order of the data and the noise.
        checkpoint_root: URL of the folder below which checkpoints are kept while training.
        autoencoder_uri: The trained autoencoder that a CALM model predicts the vectors of.
        overwrite: Whether another model of its kind that lies there is replaced (see `ArtifactWriter`).
        resume: Whether to go on from a checkpoint, or not to train at all.
        initial_digest: What the weights to start from were when the run was planned; unset, they may be any.
        launcher: How the ranks are started; unset, by torchrun on this machine.
        log_folder: A local folder for a log of what the ranks print, named by what is trained, and beside it a file of
            all points of the curves; unset, standard error alone has it.

    Raises:
        ConfigError: `resume` is asked for, and there is nothing to go on from, or nothing that is whole.
        Interrupted: The job was asked to stop; running it again continues from its checkpoint.
        CalmError: An input is unusable, another training is at work on the same or writes to the same output, or a rank
            failed.
    """
    if launcher is None:
        require_nodes(config, None)
        launcher = TorchrunLauncher()
    spec = TrainingSpec(
        kind=config.kind,
        config=config,
        dataset_uri=dataset_uri,
        autoencoder_uri=autoencoder_uri,
        output_uri=output_uri,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
    )

    def tell(line: str) -> None:
        report(spec.stage, note=line)

    with Stage(spec.stage, spec.settings) as stage:
        spec = check_inputs(spec)
        if initial_digest not in ("", spec.parents.get(INITIAL_WEIGHTS)):
            raise CalmError(
                f"{config.kind}.{INITIAL_WEIGHTS}: {config.initial_weights} has changed since the run was planned; run "
                "again",
                can_pass=True,
            )
        spec.writer(TASKS[config.kind].facts).check(lambda manifest: manifest.parents == spec.parents)
        job = Job.of(spec, checkpoint_root)
        job.check(output_uri)
        require_even_batches(spec.stage, spec.config, launcher.world_size(config.processes))
        begins = how_it_begins(spec, job, checkpoint_root, resume)
        at_work = _spec_at_work(job, launcher)
        with (
            job.take(tell, at_work.lock if at_work else "") as lock,
            FolderLock(output_uri, "name another output, or wait for it", tell=tell),
        ):
            stage.begin()
            if begins:
                stage.report(note=begins)
            log = _log_of(job, log_folder)
            own = {
                "run_id": stage.run.run_id,
                "lock": lock.token,
                "points_file": log.removesuffix(_LOG) + _POINTS if log else "",
            }
            if at_work and spec.is_that_of(at_work):
                stage.report(note="its ranks are at work already: their curves go on in the MLflow run they began in")
            else:
                job.write_spec(spec.model_copy(update=own))
            if log:
                stage.report(note=f"log: {log}")
            ending = launcher.run(job.spec_uri, config.processes, log)
            with suppress(StorageError):
                lock.require()
            headline = _headline(spec, job, ending, log)
            artifact = Artifact(output_uri, TASKS[config.kind].facts)
            try:
                lock.remove_folder()
            except StorageError as error:  # the model is there
                tell(f"the checkpoints are left behind: {error}")
        stage.finish(artifact, headline)
    return artifact


def _spec_at_work(job: Job, launcher: Launcher) -> TrainingSpec | None:
    """What the ranks have read that a launcher has left behind; None where there are none, or nobody can tell."""
    with suppress(ArtifactError):
        return Job.read(job.spec_uri)[1] if launcher.is_at_work(job.spec_uri) else None
    return None


def require_even_batches(who: str, config: TrainingConfig, ranks: int) -> None:
    """Refuse a batch that the ranks cannot share evenly.

    Raises:
        ConfigError: They cannot.
    """
    if config.global_batch_size % (config.micro_batch_size * ranks):
        raise ConfigError(
            f"{who}: global_batch_size ({config.global_batch_size}) must be a multiple of micro_batch_size x "
            f"ranks ({config.micro_batch_size} x {ranks})"
        )


def join(
    config: ModelConfig,
    dataset_uri: str,
    nodes: Nodes,
    *,
    seed: int,
    checkpoint_root: str,
    autoencoder_uri: str = "",
    log_folder: str = "",
) -> None:
    """Train on a node that is not the first one: its `train` checks, records and finishes what is trained.

    Arguments and errors are those of `train` there. Its spec is read once the nodes have met, so it is of this start.

    Args:
        nodes: Which node this is, and where the first one is reached.
    """
    spec = TrainingSpec(
        kind=config.kind,
        config=config,
        dataset_uri=dataset_uri,
        autoencoder_uri=autoencoder_uri,
        output_uri="",
        seed=seed,
    )
    spec = check_inputs(spec)
    job, launcher = Job.of(spec, checkpoint_root), TorchrunLauncher(nodes)
    require_even_batches(spec.stage, spec.config, launcher.world_size(config.processes))
    log = _log_of(job, log_folder, f".node{nodes.rank}")
    _headline(spec, job, launcher.run(job.spec_uri, config.processes, log), log)


def work_on(spec_uri: str, nodes: Nodes | None, processes: int | None = None) -> int:
    """Run the ranks of this machine for a job whose stage waits for them on another one.

    It may be started again, on all machines, for the same job: each time from the last checkpoint.

    Args:
        spec_uri: Of the job.
        nodes: Which of its machines this is; None for the only one.
        processes: Ranks here, where the settings do not say.

    Returns:
        The exit code that tells best how the training has ended: what the first rank that failed has said counts, of
        whichever machine it was.
    """
    job, spec = Job.read(spec_uri)
    if not nodes or not nodes.rank:
        job.forget_outcome()  # no rank of any machine starts before this one is there
    ending = TorchrunLauncher(nodes).run(spec_uri, spec.config.processes or processes)
    if ending.exit_code == 0:
        return 0
    outcome = job.outcome()
    if outcome and outcome.exit_code:  # the stage tells of it, and so may this machine's own log
        report(spec.stage, note=outcome.message)
    if ending.exit_code != EXIT_NO_MEETING and outcome and outcome.exit_code in (EXIT_WRONG_SETTINGS, EXIT_INTERRUPTED):
        return outcome.exit_code
    return SIGNALLED - ending.exit_code if ending.exit_code < 0 else ending.exit_code


def _log_of(job: Job, folder: str, suffix: str = "") -> str:
    """Where the log of a job lies; empty for none.

    Raises:
        CalmError: It cannot lie there.
    """
    if not folder:
        return ""
    path = Path(storage.filesystem_of(folder)[1], f"{job.name}{suffix}{_LOG}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalmError(f"{path.parent}: {first_line(error)}; the training's log would lie there") from None
    return str(path)


def _headline(spec: TrainingSpec, job: Job, ending: Ending, log: str) -> str:
    """The number that matters, as the ranks told it.

    Raises:
        CalmError: They did not finish: what a rank said of it, else what the launcher could see.
    """
    stage, outcome, where = spec.stage, job.outcome(), f" (log: {log})" if log else ""
    if ending.exit_code == 0:
        return outcome.message if outcome else ""
    if ending.exit_code == EXIT_NO_MEETING:  # an outcome is of an earlier start
        raise CalmError(
            f"{stage}: the nodes did not meet ({ending.message}); start the same command on every node, with the same "
            f"PET_MASTER_ADDR and PET_MASTER_PORT{where}",
            can_pass=True,
        )
    if outcome and outcome.exit_code == EXIT_INTERRUPTED:
        raise Interrupted(outcome.message)
    if outcome and outcome.exit_code == EXIT_WRONG_SETTINGS:
        raise ConfigError(outcome.message)
    if ending.exit_code == EXIT_INTERRUPTED and outcome and not outcome.exit_code:
        return outcome.message  # the model was written when they were asked
    if ending.exit_code == EXIT_INTERRUPTED:  # before the first step, or while a rank was lost
        raise Interrupted("stopped; run again to continue from the last checkpoint, if there is one")
    again = f"run the same command again to continue from the last checkpoint{where}"
    if ending.cause:
        raise CalmError(f"{stage}: {ending.cause}; {again}", can_pass=True)
    if ending.exit_code == SIGNALLED + signal.SIGALRM:
        raise CalmError(
            f"{stage}: a rank was stuck: no step for {spec.config.stuck_after_seconds:,} s (stuck_after_seconds); the "
            f"stacks of all ranks are {'in the log' if log else 'on standard error'}; {again}",
            can_pass=True,
        )
    if killed := killed_by(ending.exit_code, for_memory=ending.for_memory):
        who = "torchrun" if ending.exit_code < 0 else "a rank"
        raise CalmError(f"{stage}: {who} {killed}; {again}", can_pass=True)
    unexplained = f"{stage}: a rank ended with exit code {ending.exit_code}; what it said before tells why"
    told = outcome.message if outcome and outcome.exit_code else ""  # rank 0 may have finished, and another one not
    raise CalmError((told or ending.message or unexplained) + where, can_pass=bool(outcome and outcome.can_pass))
