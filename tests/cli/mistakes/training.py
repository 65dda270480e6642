"""Mistakes in going on with a training, and trainings that would be in each other's way."""

import os
from pathlib import Path

import psutil

from calm_core.errors import Interrupted
from calm_core.store import lock
from calm_core.training.job import Job
from tests.cli.mistakes.frame import Mistake
from tests.store.test_lock import holder_of, left
from tests.training.test_unfinished_training import Stopped

_TRAIN = ("train", "autoencoder", "--dataset", "{dataset}", "--output", "out")
_STUDENT = ("train", "calm", "--dataset", "{dataset}", "--autoencoder", "{autoencoder}", "--output", "out")
_NARROW = ("--set", "calm.model.head=energy", "--set", "calm.model.head.noise_size=3")
_HELD = ": is being worked on by process "


def _unfinished(*changes: str, held: bool = False) -> object:
    """Arranges a training that was stopped, or is at work."""

    def arranged(folder: Path) -> None:
        from calm_cli.options import configuration
        from calm_core.training.stage import train

        def hold(job: Job) -> None:
            if held:
                left(job.uri, _here(), 2)

        config = configuration("tiny", list(changes))
        dataset = str(folder.parent / "artifacts" / "dataset")
        try:
            train(
                config.autoencoder,
                dataset,
                "out",
                seed=config.seed,
                checkpoint_root=str(folder / "home" / "checkpoints"),
                launcher=Stopped(hold),
            )
        except (Interrupted, lock.LockLostError):
            return

    return arranged


def _here() -> lock.Holder:
    started = psutil.Process().create_time() - psutil.boot_time()
    return holder_of(machine=lock.machine(), pid=os.getpid(), started=started)


MISTAKES = [
    Mistake(
        "other nodes than torchrun is told of",
        (*_TRAIN, "--set", "autoencoder.nodes=2", "--set", "autoencoder.micro_batch_size=2"),
        ("autoencoder.nodes is 2, PET_NNODES is 4; submit the pipeline", "with PET_NNODES=2, or set it to 4"),
        exit_code=2,
        environment={
            "PET_NNODES": "4",
            "PET_NODE_RANK": "0",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": "29500",
        },
    ),
    Mistake(
        "starting from weights that are not there",
        (*_TRAIN, "--set", "autoencoder.initial_weights=nothing"),
        ("autoencoder.initial_weights: nothing: ",),
        exit_code=2,
    ),
    Mistake(
        "starting from a dataset",
        (*_TRAIN, "--set", "autoencoder.initial_weights={dataset}"),
        ("autoencoder.initial_weights: {dataset}: is a dataset artifact, an autoencoder artifact was expected",),
        exit_code=2,
    ),
    Mistake(
        "a teacher that is no language model",
        (*_STUDENT, "--teacher", "{autoencoder}"),
        ("--teacher {autoencoder}: is an autoencoder artifact, a calm or transformer artifact was expected",),
    ),
    Mistake(
        "a teacher for another model",
        (*_TRAIN, "--teacher", "{transformer}"),
        ("--teacher: is CALM's, autoencoder has none",),
        exit_code=2,
    ),
    Mistake(
        "a head with too little noise for its teacher",
        (*_STUDENT, "--teacher", "{transformer}", *_NARROW),
        ("calm.model.head: makes a sample of 3 random numbers, and needs 4, one for each token of a chunk; set ",),
        exit_code=2,
    ),
    Mistake(
        "a head that no teacher reaches",
        (*_STUDENT, "--teacher", "{transformer}", "--head", "mixture"),
        ("calm.model.head: mixture learns from no teacher, since its samples pass no gradient on to all of it; set ",),
        exit_code=2,
    ),
    Mistake(
        "a teacher in a pipeline",
        ("run", "--set", "calm.teacher={transformer}"),
        ("calm.teacher: a pipeline has no teacher; leave it out, and train with `calm train calm --teacher`",),
        exit_code=2,
    ),
    Mistake(
        "resuming where nothing was begun",
        (*_TRAIN, "--resume"),
        ("--resume: there is no unfinished training of this kind in {folder}/home/checkpoints; leave it out",),
        exit_code=2,
    ),
    Mistake(
        "resuming with another learning rate",
        (*_TRAIN, "--resume"),
        ("--resume: the unfinished training in {folder}/home/checkpoints/autoencoder-", " learning_rate 0.5 there, "),
        exit_code=2,
        arrange=_unfinished("autoencoder.learning_rate=0.5"),
    ),
    Mistake(
        "training what is being trained",
        _TRAIN,
        (_HELD, "; wait for it, or stop it, then run the same command again"),
        arrange=_unfinished(held=True),
    ),
    Mistake(
        "training to where another one writes",
        _TRAIN,
        (f"out{_HELD}", "; name another output, or wait for it"),
        arrange=lambda folder: left(str(folder / "out"), _here()),
    ),
    Mistake(
        "preparing to where another one writes",
        ("prepare", "--source", "texts.jsonl", "--output", "out"),
        (f"out{_HELD}", "; name another output, or wait for it"),
        files={"texts.jsonl": '{{"text": "A text."}}\n' * 9},
        arrange=lambda folder: left(str(folder / "out"), _here()),
    ),
]
