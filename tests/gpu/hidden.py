"""The machine's GPUs, which tests/conftest.py hides from all tests but these."""

import os

GPUS_VARIABLE = "GPUS_OF_TESTS"
"""Names what CUDA_VISIBLE_DEVICES was before."""
ALL_GPUS = "all"


def with_gpus() -> dict[str, str]:
    """The environment of a process that sees the GPUs."""
    environment = os.environ | {"DS_ACCELERATOR": "cuda"}
    if environment.get(GPUS_VARIABLE, ALL_GPUS) == ALL_GPUS:
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        environment["CUDA_VISIBLE_DEVICES"] = environment[GPUS_VARIABLE]
    return environment
