"""Seconds to register and to load a version of the size of profile `tiny`: `python -m benchmarks.registering`.

Each is a whole process with its imports, as `calm register` or a consumer's program is. Weights are those of
one step of training: what they say changes no time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import REPOSITORY, Numbers, in_turns, metered

RUNS = 5
OVERRIDES = (
    *(f"{model}.{setting}=1" for model in ("autoencoder", "calm") for setting in ("steps", "warmup_steps")),
    *("evaluation.samples=2", "evaluation.max_sequences=2"),
)


def register(folder: Path, name: str) -> None:
    """A version that is not there yet: the stage, with its run in MLflow, and the version loaded once to be checked."""
    from calm_core.config import RegistryConfig
    from calm_core.registry.stage import register_model

    config = RegistryConfig(model_name=name)
    places = (f"{folder}/calm", f"{folder}/evaluation", f"{folder}/registration-{name}")
    register_model(config, *places, dataset_uri=f"{folder}/dataset")


def load(folder: Path, name: str) -> None:
    """The generator, by this library alone."""
    from calm_core.registry.load import load_generator

    load_generator(f"models:/{name}@champion")


def load_with_mlflow(folder: Path, name: str) -> None:
    """What a consumer calls."""
    import mlflow

    mlflow.pyfunc.load_model(f"models:/{name}@champion")


ACTIONS: dict[str, Callable[[Path, str], None]] = {
    "register": register,
    "register again, which keeps the version": register,
    "load_generator": load,
    "mlflow.pyfunc.load_model": load_with_mlflow,
}


def main() -> None:
    """Print a table of seconds, medians; or time one action in this process, where it is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registering", description=__doc__)
    parser.add_argument("action", nargs="*", help=argparse.SUPPRESS)
    if action := parser.parse_args().action:
        ACTIONS[action[0]](Path(action[1]), action[2])
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        _train(folder)
        print("| what | seconds | CPU-seconds |\n|---|---|---|")
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "PYTHONPATH": str(REPOSITORY),
        }
        names = iter(f"tiny-{number}" for number in range(RUNS))
        current = ""

        def run(action: str) -> Numbers:
            nonlocal current
            current = next(names) if action == "register" else current
            command = [sys.executable, "-m", "benchmarks.registering", action, str(folder), current]
            return metered(
                partial(subprocess.run, command, check=True, capture_output=True, cwd=folder, env=environment)
            )

        for action, numbers in in_turns({action: partial(run, action) for action in ACTIONS}, RUNS).items():
            print(f"| {action} | {numbers['seconds']:.1f} | {numbers['cpu_seconds']:.1f} |", flush=True)


def _train(folder: Path) -> None:
    """A dataset, an autoencoder, a model and its evaluation."""
    # Here, since a process that is measured would import all of it as well.
    from calm_core.config import resolve_config
    from calm_core.data.sources.factbook import write_factbook
    from calm_core.data.stage import prepare_data
    from calm_core.evaluation.stage import evaluate
    from calm_core.training.stage import train
    from pipelines import profiles

    write_factbook(str(folder / "corpus.jsonl"))
    config = resolve_config(profiles.load("tiny"), [*OVERRIDES, f"data.sources=[{folder / 'corpus.jsonl'}]"])
    dataset = prepare_data(config.data, config.tokenizer, str(folder / "dataset")).uri
    checkpoints, seed = str(folder / "checkpoints"), config.seed
    autoencoder = train(
        config.autoencoder, dataset, str(folder / "autoencoder"), seed=seed, checkpoint_root=checkpoints
    ).uri
    calm = train(
        config.calm,
        dataset,
        str(folder / "calm"),
        seed=seed,
        checkpoint_root=checkpoints,
        autoencoder_uri=autoencoder,
    )
    evaluate(config.evaluation, dataset, calm.uri, str(folder / "evaluation"), seed=seed)


if __name__ == "__main__":
    main()
