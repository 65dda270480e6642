"""What can be known before a run: in seconds, instead of after the training that it would spoil."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import cast

from calm_core.config import AutoencoderConfig, Config, TrainingConfig
from calm_core.errors import CalmError, ConfigError
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, DatasetFacts, Facts, MixtureFacts
from pipelines.local.home import HOME_VARIABLE, Home

_COMPILERS = ("c++", "g++", "clang++")
_THREADS = "OMP_NUM_THREADS"
_FILES, _FILES_AT_A_TIME = 1000, 16  # whose sizes are asked for
_TEXT, _SHARE_OF_TEXT = (".jsonl", ".txt", ".gz", ".zst"), 0.1
"""Of files that are little else than text, at least so much of their size comes back as shards, compressed."""
_FP32_BYTES = 4  # of a parameter, of each of Adam's two moments, of the average


def check_environment() -> None:
    """Refuse what torch and its libraries would read wrongly, or stumble over, when they start.

    Raises:
        ConfigError: One line that names the variable.
    """
    threads = os.environ.get(_THREADS)
    if threads is not None and not (threads.isascii() and threads.isdecimal() and int(threads)):
        raise ConfigError(f"{_THREADS} is {threads!r}: expected one number of threads, 1 or more; change or unset it")


def check_run(config: Config, home: Home, tell: Callable[[str], None]) -> None:
    """Check all that a run will need, the quickest first.

    Args:
        config: Every setting.
        home: Where the run works.
        tell: Gets what is being checked, at each step.

    Raises:
        CalmError: Something is missing, cannot be used, or contradicts something else: one line that says what to do.
    """
    from calm_core.training.launcher import require_nodes

    kinds = ("autoencoder", "calm", *(["transformer"] if config.train_baseline else []))
    for kind in kinds:
        require_nodes(getattr(config, kind), None)
    if config.data.validation_fraction == 1:
        raise ConfigError("data.validation_fraction: is 1, so a run has no text to train on; lower it")
    tell(f"the folder {home.path}")
    for folder in (
        home.pipeline_root,
        home.cache,
        home.plans,
        home.checkpoints,
        home.logs,
        home.outbox,
        home.mlflow_artifacts,
    ):
        storage.require_writable(str(folder))
    tell("the sources of text")
    source_bytes = _check_sources(config)
    vocab_size = _check_tokenizer(config, tell)
    tell("the models")
    parameters = _check_models(config, vocab_size, kinds)
    _check_disk(config, home, parameters, source_bytes)
    tell("MLflow")
    from pipelines.local.tracking import use_tracking  # costs seconds, and in a new home makes a database

    use_tracking(home, config.experiment)
    _check_initial_weights(config, vocab_size, kinds)


def check_sweep(
    runs: Sequence[tuple[Config, str]], home: Home, folder: Path, parallel: int, tell: Callable[[str], None]
) -> None:
    """Check all that the runs of a sweep will need, the quickest first.

    Args:
        runs: Settings and language model of each; text and scores are the same.
        home: Where MLflow is.
        folder: Where all of it is written.
        parallel: Runs at a time.
        tell: As of `check_run`.

    Raises:
        CalmError: As of `check_run`.
    """
    from calm_core.training.launcher import require_nodes

    config, _ = runs[0]
    trained = {
        (kind, getattr(each, kind).model_dump_json(), each.autoencoder.model_dump_json()): each
        for each, model in runs
        for kind in (*(["autoencoder"] if model == "calm" else []), model)
    }
    for (kind, _, _), each in trained.items():
        require_nodes(getattr(each, kind), None)
    if config.data.validation_fraction == 1:
        raise ConfigError("data.validation_fraction: is 1, so a run has no text to train on; lower it")
    tell(f"the folder {folder}")
    storage.require_writable(str(folder))
    for place in (home.logs, home.outbox, home.mlflow_artifacts):
        storage.require_writable(str(place))
    tell("the sources of text")
    source_bytes = _check_sources(config)
    vocab_size = _check_tokenizer(config, tell)
    tell("the models")
    parameters = {key: _check_models(each, vocab_size, [key[0]])[key[0]] for key, each in trained.items()}
    checkpoints = [_checkpoint_bytes(getattr(each, key[0]), parameters[key]) for key, each in trained.items()]
    needed = int(_SHARE_OF_TEXT * source_bytes) + parallel * max(checkpoints)
    needed += sum(
        _FP32_BYTES * parameters[model, getattr(each, model).model_dump_json(), each.autoencoder.model_dump_json()]
        for each, model in runs
    )
    free = shutil.disk_usage(_nearest(folder)).free
    if needed > free and needed > free + _bytes_in(folder):
        raise CalmError(
            f"{folder}: this sweep writes {_size(needed)} or more there (data, checkpoints, models), and "
            f"{_size(free)} are free; free space, name another output_uri, or plan fewer runs"
        )
    tell("MLflow")
    from pipelines.local.tracking import use_tracking

    use_tracking(home, config.experiment)
    for (kind, _, _), each in trained.items():
        _check_initial_weights(each, vocab_size, [kind])


def _check_initial_weights(config: Config, vocab_size: int, kinds: Sequence[str]) -> None:
    """Refuse weights to start from that are missing or do not fit; the text may have no tokenizer yet."""
    from calm_core.training.initial_weights import require_fitting
    from calm_core.weights.initial import initial_model

    for kind in kinds:
        training: TrainingConfig = getattr(config, kind)
        if training.initial_weights:
            with initial_model(training, files=False) as initial:
                require_fitting(training, initial, vocab_size, config.autoencoder if kind == "calm" else None)


def _check_sources(config: Config) -> int:
    """Bytes of text that the sources hold at least."""
    from calm_core.data.sources.check import check_sources
    from calm_core.data.sources.files import files_by_source

    check_sources(config.data)
    files = chain.from_iterable(files_by_source(config.data).values())
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return sum(pool.map(storage.size, islice((file for file in files if file.endswith(_TEXT)), _FILES)))


def _check_tokenizer(config: Config, tell: Callable[[str], None]) -> int:
    """How many tokens there will be. A tokenizer that is there already has to be one that takes any text."""
    from calm_core.data.preparing.extension import Extension
    from calm_core.data.tokenizers.tokenizer import Tokenizer

    if not config.tokenizer.source and not config.data.extends:
        return config.tokenizer.vocab_size
    tell("the tokenizer")
    if extension := Extension.of(config.data):
        tokenizer = extension.tokenizer()
    else:
        special = config.tokenizer.pad_token, config.tokenizer.eos_token, config.tokenizer.bos_token
        tokenizer = Tokenizer.load(config.tokenizer.source, *special, start_of_text=config.data.start_of_text)
    return tokenizer.vocab_size


def _check_models(config: Config, vocab_size: int, kinds: Sequence[str]) -> dict[str, int]:
    """Parameters of models, by their kind."""
    import torch

    from calm_core.scaling.cost import parameters_by_kind
    from calm_core.training.launcher import TorchrunLauncher
    from calm_core.training.memory import require_memory
    from calm_core.training.stage import require_even_batches

    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    parameters = parameters_by_kind(config, vocab_size)
    for kind in kinds:
        training: TrainingConfig = getattr(config, kind)
        ranks = TorchrunLauncher().world_size(training.processes)
        require_even_batches(kind, training, ranks)
        require_memory(f"{kind}: ", parameters[kind], training, ranks, ranks, device)
        if getattr(training, "compile", False) and not has_gpu and not any(map(_is_program, _compilers())):
            raise ConfigError(
                f"{kind}.compile: needs a C++ compiler, and none is installed ({', '.join(_compilers())}); install "
                "one, or leave the setting out"
            )
    return {kind: parameters[kind] for kind in kinds}


def _compilers() -> tuple[str, ...]:
    return (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS


def _is_program(name: str) -> bool:
    return shutil.which(name) is not None


def _check_disk(config: Config, home: Home, parameters: dict[str, int], source_bytes: int) -> None:
    """Refuse a run that cannot fit. What is there already may be what the run would write, so it counts as free."""
    needed = least_bytes(config, parameters, source_bytes)
    free = shutil.disk_usage(home.path).free
    if needed > free and needed > free + _bytes_in(home.path):
        raise CalmError(
            f"{home.path}: this run writes {_size(needed)} or more there (data, checkpoints, models), and "
            f"{_size(free)} are free; free space, set {HOME_VARIABLE} to a folder on another disk, or choose smaller "
            "models"
        )


def least_bytes(config: Config, parameters: dict[str, int], source_bytes: int) -> int:
    """What lies in the home at least, when it is fullest: as a model is written beside its checkpoints.

    Args:
        config: Every setting.
        parameters: Of the models that are trained, by their kind, in this order.
        source_bytes: Of the sources of text.
    """
    held = fullest = int(_SHARE_OF_TEXT * source_bytes)
    for kind, number in parameters.items():
        training: TrainingConfig = getattr(config, kind)
        held += _FP32_BYTES * number
        fullest = max(fullest, held + _checkpoint_bytes(training, number))
    return fullest


def _checkpoint_bytes(training: TrainingConfig, parameters: int) -> int:
    """What checkpoints take at least when they are most: those that are kept, and one that is being written."""
    saved = -(-training.steps // training.checkpoint_interval)  # the last step saves one, too
    held = min(saved, training.checkpoints_kept + 1)
    if training.keep_every:
        held = max(held, training.steps // math.lcm(training.checkpoint_interval, training.keep_every))
    return held * _FP32_BYTES * (4 if training.ema_decay else 3) * parameters


def check_training(
    config: Config, kind: str, dataset_uri: str, autoencoder_uri: str, output_uri: str, checkpoint_root: str
) -> None:
    """Check what a single training needs beside its inputs: memory, a compiler, room on the disks.

    Args:
        config: Every setting.
        kind: Of the model.
        dataset_uri, autoencoder_uri: The inputs, which are there.
        output_uri, checkpoint_root: Where the model and its checkpoints go.

    Raises:
        CalmError: It is missing: one line that says what to do.
    """
    from calm_core.weights.load import settings_of

    if autoencoder_uri:
        autoencoder = settings_of(Artifact(autoencoder_uri, AutoencoderFacts), AutoencoderConfig)
        config = config.model_copy(update={"autoencoder": autoencoder})
    parameters = _check_models(config, _vocab_size(dataset_uri), [kind])[kind]
    needed = {
        checkpoint_root: _checkpoint_bytes(getattr(config, kind), parameters),
        output_uri: _FP32_BYTES * parameters,
    }
    places = {uri: Path(storage.real(uri)) for uri in needed if storage.is_local(uri)}
    disks: dict[int, list[str]] = {}
    for uri, path in places.items():
        disks.setdefault(_nearest(path).stat().st_dev, []).append(uri)
    for uris in disks.values():
        total, free = sum(needed[uri] for uri in uris), shutil.disk_usage(_nearest(places[uris[0]])).free
        if total > free and total > free + sum(_bytes_in(places[uri]) for uri in uris):
            raise CalmError(
                f"{' and '.join(uris)}: this training writes {_size(total)} or more there (checkpoints, model), and "
                f"{_size(free)} are free; free space, give output_uri or checkpoint_root on another disk, or lower "
                "checkpoints_kept"
            )


def _vocab_size(dataset_uri: str) -> int:
    facts = Artifact[Facts](dataset_uri, DatasetFacts, MixtureFacts).facts
    return _vocab_size(facts.datasets[0]) if isinstance(facts, MixtureFacts) else cast(DatasetFacts, facts).vocab_size


def _nearest(path: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def _size(number: int) -> str:
    """A number of bytes in the unit that shows it."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"
