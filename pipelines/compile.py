"""Compile the pipelines: ``python -m pipelines.compile`` writes the YAML that is under version control."""

from pathlib import Path

TRAIN_PIPELINE = Path(__file__).with_name("calm_train.yaml")


def compile_train(path: Path = TRAIN_PIPELINE) -> None:
    """Write the compiled pipeline `calm-train`."""
    from kfp import compiler

    from pipelines.dags.train import calm_train

    compiler.Compiler().compile(calm_train, str(path))


if __name__ == "__main__":
    compile_train()
    print(f"wrote {TRAIN_PIPELINE}")
