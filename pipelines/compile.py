"""Compile the pipelines: ``python -m pipelines.compile`` writes the YAML that is under version control."""

import re
from pathlib import Path

TRAIN_PIPELINE = Path(__file__).with_name("calm_train.yaml")


def compile_train(path: Path = TRAIN_PIPELINE) -> None:
    """Write the compiled pipeline `calm-train`."""
    from kfp import compiler

    from pipelines.dags.train import calm_train

    compiler.Compiler().compile(calm_train, str(path))
    # Kubeflow repeats the defaults in comments, their keys in an order that differs each time.
    text = re.sub(r"^(#.*: dict) \[Default: .*\]$", r"\1", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    compile_train()
    print(f"wrote {TRAIN_PIPELINE}")
