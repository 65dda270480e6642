"""Registers versions of several models side by side with others, and decides about them; no file and no score is real.

Arguments: a folder in which processes wait for each other, the number of this process, how many there are, and models.
"""

import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from calm_core.config import RegistryConfig
from calm_core.registry.aliases import Aliases, Decision
from calm_core.registry.gate import Contender, judge
from calm_core.store.facts import Decided, Difference, ScoreDifference


def decide(number: str, champion: str | None, rules: RegistryConfig) -> Decided:
    """Every version is significantly better than version 1, and none than another."""
    better = champion == "1"
    score = ScoreDifference(value=2.0 if better else 0.1, low=-1.0, high=3.0, p_value=0.001 if better else 0.8)
    difference = Difference(
        brierlm=score, brier={"1": score}, documents=30, positions=900, resamples=99, confidence=0.95
    )
    return judge(rules, Contender(number), Contender(champion) if champion else None, difference)


def main() -> None:
    """One version of each model, when all are there."""
    folder, process, processes, *models = sys.argv[1:]
    for model in models:
        (Path(folder) / f"{model}-{process}").touch()
        while len([*Path(folder).glob(f"{model}-*")]) < int(processes):
            time.sleep(0.001)
        config = RegistryConfig(model_name=model)
        version = MlflowClient().create_model_version(
            model, "s3://nowhere/model", tags=Decision.begun(config).tags, await_creation_for=0
        )
        decided = Aliases(config, decide).decide(str(version.version))
        print(model, version.version, decided.promoted, flush=True)


if __name__ == "__main__":
    main()
