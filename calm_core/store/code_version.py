"""The version of the code that made an artifact; part of every cache key."""

import functools
import hashlib
import os
from pathlib import Path

import calm_core

CODE_VERSION_VARIABLE = "CALM_CODE_VERSION"


@functools.cache
def code_version() -> str:
    """The image digest in a cluster (from CALM_CODE_VERSION), else a digest of the installed library's source files."""
    if from_environment := os.environ.get(CODE_VERSION_VARIABLE):
        return from_environment
    root = Path(calm_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"library-{digest.hexdigest()[:16]}"
