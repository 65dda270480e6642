"""What identifies a training, what an unfinished one is taken for, and that no two work on the same."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calm_core.config import AutoencoderConfig, TrainingConfig
from calm_core.data.mixture import mix_datasets
from calm_core.errors import EXIT_WRONG_SETTINGS, CalmError, ConfigError, Interrupted
from calm_core.store import lock, storage
from calm_core.store.lock import Holder, LockLostError
from calm_core.training.job import Job, TrainingSpec, check_inputs
from calm_core.training.launcher import Ending
from calm_core.training.stage import train
from tests.store.test_lock import holder_of, left
from tests.training.test_stages import autoencoder_config, calm_config

EXECUTION = {
    "bad_steps_limit",
    "checkpoint_interval",
    "checkpoints_kept",
    "keep_best",
    "keep_every",
    "launcher",
    "log_interval",
    "micro_batch_size",
    "nodes",
    "offload",
    "peak_tflops",
    "processes",
    "profile_steps",
    "stuck_after_seconds",
    "validation_interval",
    "zero_stage",
}
TRAINED = {
    "betas",
    "decay_fraction",
    "decay_shape",
    "ema_decay",
    "final_learning_rate_fraction",
    "global_batch_size",
    "gradient_clipping",
    "learning_rate",
    "model",
    "precision",
    "rewinds",
    "schedule",
    "steps",
    "validation_sequences",
    "warmup_steps",
    "weight_decay",
}
OF_LANGUAGE_MODELS = {"activation_checkpointing", "compile"}
PLACES = {"initial_weights", "teacher"}
"""What lies there is a parent."""
TRAINED_OF = {
    "autoencoder": set(),
    "calm": {"head_learning_rate", "decoder_loss", "distillation"},
    "transformer": set(),
}


def spec_of(config: TrainingConfig, dataset_uri: str, autoencoder_uri: str = "", seed: int = 0) -> TrainingSpec:
    spec = TrainingSpec(
        kind=config.kind,
        config=config,
        dataset_uri=dataset_uri,
        autoencoder_uri=autoencoder_uri,
        output_uri="out",
        seed=seed,
    )
    return check_inputs(spec)


class Stopped:
    """A launcher of no ranks, which are asked to stop once they have left a checkpoint."""

    def __init__(self, meanwhile: Callable[[Job], object] = lambda job: None) -> None:
        self.meanwhile = meanwhile

    def world_size(self, processes: int | None) -> int:
        return 1

    def is_at_work(self, spec_uri: str) -> bool:
        return False

    def run(self, spec_uri: str, processes: int | None, log: str) -> Ending:
        job, _ = Job.read(spec_uri)
        storage.write(storage.join(job.uri, "step-00000004", "manifest.json"), b"{}")
        self.meanwhile(job)
        return Ending(75)


def stopped(
    dataset_uri: str, folder: Path, output: str = "out", *, launcher: Stopped | None = None, **settings: Any
) -> None:
    """Train, until it is stopped; resume and seed are the stage's, all else settings."""
    stage = {"resume": settings.pop("resume", False), "seed": settings.pop("seed", 0)}
    with pytest.raises(Interrupted):
        train(
            AutoencoderConfig.model_validate(autoencoder_config().model_dump() | settings),
            dataset_uri,
            str(folder / output),
            checkpoint_root=str(folder / "checkpoints"),
            launcher=launcher or Stopped(),
            **stage,
        )


def jobs(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").iterdir())


def test_every_setting_is_either_of_what_is_trained_or_of_how() -> None:
    """Whoever adds one has to think of it: does its change begin another training?"""
    for kind, config in TrainingConfig.of_kind.items():
        execution = config.model_validate({"steps": 200}).execution_settings()
        execution -= PLACES
        assert execution == EXECUTION | (OF_LANGUAGE_MODELS if kind != "autoencoder" else set()), kind
        assert config.model_fields.keys() - execution - PLACES == TRAINED | TRAINED_OF[kind], kind


OTHER: dict[str, Any] = {
    "activation_checkpointing": True,
    "compile": True,
    "global_batch_size": 8,
    "keep_best": True,
    "keep_every": 2,
    "launcher": "trainjob",
    "nodes": 2,
    "offload": True,
    "processes": 2,
    "profile_steps": (1, 2),
    "learning_rate": 1e-3,
    "zero_stage": 3,
}


@pytest.mark.parametrize("name", sorted(EXECUTION | OF_LANGUAGE_MODELS))
def test_how_a_training_is_carried_out_does_not_tell_it_from_others(
    name: str, dataset_uri: str, model_uris: tuple[str, str]
) -> None:
    config = calm_config()
    other = config.model_validate(config.model_dump() | {name: OTHER.get(name, 1)})
    assert getattr(other, name) != getattr(config, name)
    one, two = (Job.of(spec_of(each, dataset_uri, model_uris[0]), "checkpoints") for each in (config, other))
    assert one == two


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"steps": 7}, {"seed": 1}, {"global_batch_size": 8}])
def test_what_is_trained_does(change: dict[str, Any], dataset_uri: str) -> None:
    config = autoencoder_config()
    other = config.model_validate(config.model_dump() | {k: v for k, v in change.items() if k != "seed"})
    one, two = spec_of(config, dataset_uri), spec_of(other, dataset_uri, seed=change.get("seed", 0))
    assert Job.of(one, "checkpoints") != Job.of(two, "checkpoints")


def test_where_the_inputs_lie_does_not(dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path) -> None:
    """Of a mixture and its datasets neither, nor of an autoencoder."""
    found: list[list[str]] = []
    for name in ("here", "there"):
        folder = tmp_path / name
        dataset, autoencoder = (shutil.copytree(uri, folder / Path(uri).name) for uri in (dataset_uri, model_uris[0]))
        mixed = mix_datasets({str(dataset): 1.0}, str(folder / "mixed")).uri
        config = calm_config()
        specs = [spec_of(config, uri, str(autoencoder)) for uri in (str(dataset), mixed)]
        found.append([Job.of(spec, "checkpoints").uri for spec in specs])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_what_is_trained_anew_says_which_unfinished_one_it_differs_from(
    dataset_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped(dataset_uri, tmp_path)
    (first,) = jobs(tmp_path)
    stopped(dataset_uri, tmp_path, processes=1, log_interval=1)
    assert jobs(tmp_path) == [first]
    assert "begins anew" not in capfd.readouterr().err

    stopped(dataset_uri, tmp_path, learning_rate=1e-3, seed=3)
    assert (
        f"[train-autoencoder] running begins anew: the unfinished training in {first} differs: learning_rate 0.005 "
        "there, 0.001 here, seed 0 there, 3 here\n"
    ) in capfd.readouterr().err


def test_it_is_compared_with_the_one_of_the_same_output_or_else_the_nearest(
    dataset_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped(dataset_uri, tmp_path, "a", steps=16, learning_rate=1e-3)
    stopped(dataset_uri, tmp_path, "b", steps=32)
    capfd.readouterr()
    stopped(dataset_uri, tmp_path, "c")
    assert "differs: steps 32 there, 8 here\n" in capfd.readouterr().err
    stopped(dataset_uri, tmp_path, "a", seed=1)
    assert "differs: learning_rate 0.001 there, 0.005 here, seed 0 there, 1 here, steps 16" in capfd.readouterr().err


def test_nothing_is_said_of_one_that_is_another_or_at_work_or_unreadable_or_never_saved_anything(
    dataset_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped(dataset_uri, tmp_path, steps=9, learning_rate=1e-3, weight_decay=0.2, warmup_steps=1, gradient_clipping=0.5)
    (other,) = jobs(tmp_path)
    stopped(dataset_uri, tmp_path)
    assert "begins anew" not in capfd.readouterr().err
    shutil.rmtree(other)

    (saved,) = jobs(tmp_path)
    for change in (
        lambda: left(str(saved), holder_of()),
        lambda: (saved / "spec" / "manifest.json").write_text("{}"),
        lambda: shutil.rmtree(saved / "step-00000004"),
    ):
        change()
        stopped(dataset_uri, tmp_path, seed=1)
        assert "begins anew" not in capfd.readouterr().err
        shutil.rmtree(next(job for job in jobs(tmp_path) if job != saved))


def test_a_copy_of_a_checkpoint_under_another_name_is_in_nobodys_way(dataset_uri: str, tmp_path: Path) -> None:
    stopped(dataset_uri, tmp_path)
    (first,) = jobs(tmp_path)
    (first / "step-00000004").rename(first / "step-00000004.kept")
    with pytest.raises(ConfigError, match="no unfinished training"):
        stopped(dataset_uri, tmp_path, resume=True)
    stopped(dataset_uri, tmp_path)
    stopped(dataset_uri, tmp_path, seed=1)


def test_to_resume_is_to_go_on_or_to_be_refused(
    dataset_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        stopped(dataset_uri, tmp_path, resume=True)
    root = tmp_path / "checkpoints"
    assert str(refused.value) == (
        f"resume=True: there is no unfinished training of this kind in {root}; leave it out to begin one"
    )
    assert not root.exists()

    stopped(dataset_uri, tmp_path)
    (first,) = jobs(tmp_path)
    stopped(dataset_uri, tmp_path, "elsewhere", resume=True, checkpoint_interval=2)
    with pytest.raises(ConfigError) as refused:
        stopped(dataset_uri, tmp_path, resume=True, learning_rate=1e-3)
    assert str(refused.value) == (
        f"resume=True: the unfinished training in {first} differs: learning_rate 0.005 there, 0.001 here; give the "
        "same, or leave it out to begin anew"
    )
    assert refused.value.exit_code == EXIT_WRONG_SETTINGS
    assert jobs(tmp_path) == [first]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, r"checkpoints/autoencoder-\w{16}: is being worked on by process .*; wait for it, or stop it, then run"),
        ({"seed": 1}, "out: is being worked on by process .*; name another output, or wait for it"),
    ],
    ids=["the same training", "another one with the same output"],
)
def test_two_do_not_work_on_the_same(dataset_uri: str, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    refused: list[CalmError] = []

    def files() -> list[Path]:
        return sorted(path for path in tmp_path.rglob("*") if not path.name.startswith(".calm-lock"))

    def second(job: Job) -> None:
        before = files()
        with pytest.raises(CalmError, match=says) as caught:
            stopped(dataset_uri, tmp_path, **change)
        refused.append(caught.value)
        assert files() == before

    stopped(dataset_uri, tmp_path, launcher=Stopped(second))
    assert refused[0].can_pass
    assert not list(tmp_path.rglob(".calm-lock*"))
    assert not (tmp_path / "out").exists()


def test_one_whose_job_was_taken_over_says_so_and_touches_nothing(dataset_uri: str, tmp_path: Path) -> None:
    here: list[Path] = []

    def taken(job: Job) -> None:
        holder = holder_of(host="far")
        left(job.uri, holder, 2)
        with pytest.raises(LockLostError):
            job.require_lock()
        here.extend(path for path in Path(job.uri).rglob("*") if path.is_file())

    with pytest.raises(LockLostError, match=r"its lock is held by another one now \(process 7 on far, since 1970"):
        stopped(dataset_uri, tmp_path, launcher=Stopped(taken))
    assert all(path.exists() for path in here)
    assert Holder.model_validate_json((jobs(tmp_path)[0] / ".calm-lock-2").read_bytes()) == holder_of()


def test_ranks_of_a_dead_start_are_waited_for(
    dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are known by the spec that they were started with."""
    job = Job.of(spec_of(autoencoder_config(), dataset_uri), str(tmp_path))
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.01)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left(job.uri, holder_of(machine=lock.machine(), pid=dead.pid))
    code = "import sys; sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", code, job.spec_uri], stdin=subprocess.PIPE) as rank:
        assert job._is_at_work()
        with monkeypatch.context() as impatient:
            impatient.setattr(lock, "ENDING_SECONDS", 0.05)
            with pytest.raises(CalmError, match=r"what process .* has started"), job.take(lambda line: None):
                pass
        rank.communicate()
    with job.take(lambda line: None) as held:
        held.require()
