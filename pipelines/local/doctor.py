"""What a machine or a pod needs to run stages: packages, places to write, storage, MLflow."""

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from platform import python_version

from calm_core.errors import CalmError
from calm_core.shown import redacted
from calm_core.store import storage
from calm_core.store.code_version import code_version
from calm_core.telemetry.mlflow_store import TRACKING_URI_VARIABLE, place_of, quiet_mlflow, reach_mlflow
from pipelines.checks import Check, NotLookedAt, check

_DISTRIBUTION = "calm-pipelines"
_EXTRAS = ("train", "pipelines", "cli")
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)[^;]*(?:;.*extra == ['\"](?P<extra>[^'\"]+)['\"])?")
_SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED_MEMORY = 1 << 30
_TRIAL_BYTES = 4096


def checks(storage_uri: str = "") -> Iterator[Check]:
    """Look at this machine or pod.

    Args:
        storage_uri: A folder that is written to and read from; empty: none is.
    """
    yield check("Python", lambda: f"{python_version()}, code {code_version()}")
    yield check("packages", _packages, "install them: pip install 'calm-pipelines[all]'")
    yield check(
        "home", lambda: _writable(Path.home), "set HOME to a folder that this user may write to: HOME=/tmp/home"
    )
    yield check("temporary files", lambda: _writable(lambda: Path(tempfile.gettempdir())), "set TMPDIR likewise")
    yield check("shared memory", _shared_memory)
    yield check(
        "storage", lambda: _storage(storage_uri), "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    yield check(
        "MLflow", _mlflow, f"set {TRACKING_URI_VARIABLE}, and MLFLOW_TRACKING_USERNAME and _PASSWORD if it asks"
    )


def _packages() -> str:
    missing, found = [], 0
    try:
        requirements = requires(_DISTRIBUTION) or ()
    except PackageNotFoundError:
        raise CalmError(f"{_DISTRIBUTION}: not installed, only its files are here") from None
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match is None or (match["extra"] and match["extra"] not in _EXTRAS) or match["name"] == _DISTRIBUTION:
            continue
        try:
            version(match["name"])
            found += 1
        except PackageNotFoundError:
            missing.append(match["name"])
    if missing:
        raise CalmError(f"{', '.join(sorted(set(missing)))}: not installed")
    return f"{found} that the stages need are installed"


def _writable(find: Callable[[], Path]) -> str:
    try:
        folder = find()
    except (RuntimeError, OSError):
        raise CalmError("there is none for this user") from None
    storage.require_writable(str(folder))
    return f"{folder} can be written"


def _shared_memory() -> str:
    if not _SHARED_MEMORY.is_dir():
        raise NotLookedAt("this system has none")
    size = shutil.disk_usage(_SHARED_MEMORY).total
    if size < _LEAST_SHARED_MEMORY:
        raise NotLookedAt(
            f"{_SHARED_MEMORY} has {size >> 20} MiB: fine for one rank; several need a volume of memory there"
        )
    return f"{size / 2**30:.1f} GiB"


def _storage(uri: str) -> str:
    if not uri:
        raise NotLookedAt("no folder is named; --storage s3://bucket/folder writes and reads one")
    trial, data = storage.join(uri, f".calm-doctor-{secrets.token_hex(6)}"), secrets.token_bytes(_TRIAL_BYTES)
    if storage.is_local(uri):
        storage.require_writable(uri)
        return f"{uri} can be written"
    storage.write(trial, data)
    try:
        if storage.read(trial) != data:
            raise CalmError(f"{uri}: gives back other bytes than were written")
    finally:
        storage.remove([trial])
    return f"{redacted(uri)}: written, read and removed"


def _mlflow() -> str:
    uri = os.environ.get(TRACKING_URI_VARIABLE, "")
    if not uri:
        raise NotLookedAt(f"{TRACKING_URI_VARIABLE} is not set: runs are recorded on this machine alone")
    quiet_mlflow()
    reach_mlflow(to_read=True)
    return f"{place_of(uri)} answers"
