"""The libraries that the data benchmarks are compared with, in an environment of their own."""

import subprocess
import sys
from pathlib import Path

from benchmarks.measure import REPOSITORY, Numbers, in_process

_REQUIREMENTS = Path(__file__).with_name("requirements-peers.txt")
_FOLDER = REPOSITORY / "build" / "peers"


def peer(*arguments: object, folder: Path) -> Numbers:
    """Run `benchmarks.peer_work` in the peers' environment; what they keep lies in a folder, nothing is downloaded."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "TOKENIZERS_PARALLELISM": "false"}
    return in_process("benchmarks.peer_work", *arguments, python=_python(), environment=environment)


def _python() -> Path:
    """The environment's interpreter; it is made anew when the requirements have changed."""
    installed, wanted = _FOLDER / "installed.txt", _REQUIREMENTS.read_text()
    python = _FOLDER / "bin" / "python"
    if installed.exists() and installed.read_text() == wanted:
        return python
    print(f"installing {_REQUIREMENTS.name} into {_FOLDER} ...", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(_FOLDER)],
        [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(_REQUIREMENTS)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            sys.exit(f"{_REQUIREMENTS}: cannot be installed into {_FOLDER} ({reason}); the data benchmarks need it")
    installed.write_text(wanted)
    return python
