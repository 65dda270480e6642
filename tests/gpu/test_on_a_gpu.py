"""What runs on a GPU, in processes that see it; a machine without one skips these."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import checks
from tests.gpu.hidden import with_gpus

_COUNT = "import torch; print(torch.cuda.device_count())"


@pytest.fixture(scope="session")
def gpu() -> None:
    """The test is skipped where there is none."""
    counted = subprocess.run([sys.executable, "-c", _COUNT], env=with_gpus(), capture_output=True, text=True)
    if not int(counted.stdout.split()[-1]):
        pytest.skip("torch finds no GPU on this machine")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("check", checks.ALL)
def test_on_a_gpu(check: str, tmp_path: Path, dataset_uri: str) -> None:
    command = [sys.executable, "-m", "tests.gpu.checks", check, str(tmp_path), dataset_uri]
    done = subprocess.run(command, env=with_gpus(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-8000:]
