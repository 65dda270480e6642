"""Compile the pipelines: ``python -m pipelines.compile`` writes the YAML that is under version control."""

import re
from pathlib import Path
from typing import Any

TRAIN_PIPELINE = Path(__file__).with_name("calm_train.yaml")
RETRAIN_PIPELINE = Path(__file__).with_name("calm_retrain.yaml")


def compile_train(path: Path = TRAIN_PIPELINE) -> None:
    """Write the compiled pipeline `calm-train`."""
    from pipelines.dags.train import calm_train

    _compile(calm_train, path)


def compile_retrain(path: Path = RETRAIN_PIPELINE) -> None:
    """Write the compiled pipeline `calm-retrain`."""
    from pipelines.dags.retrain import calm_retrain

    _compile(calm_retrain, path)


def _compile(pipeline: Any, path: Path) -> None:
    from kfp import compiler

    compiler.Compiler().compile(pipeline, str(path))
    # Kubeflow repeats the defaults in comments, their keys in an order that differs each time.
    text = re.sub(r"^(#.*: dict) \[Default: .*\]$", r"\1", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    compile_train()
    compile_retrain()
    print(f"wrote {TRAIN_PIPELINE} and {RETRAIN_PIPELINE}")
