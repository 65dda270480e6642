"""This library as a wheel, for models that carry what loads them: the library is on no package index.

Made of what is installed, in whatever way, without its sources, a compiler or a network; the same code gives the same
bytes. Format: the binary distribution format of the Python packaging specifications (PEP 427).
"""

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from calm_core.errors import CalmError

_NAME = "calm-pipelines"
_WHEEL = b"Wheel-Version: 1.0\nGenerator: calm-pipelines\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the first that a zip archive can name
_READABLE = 0o100644 << 16
_LABEL = 12  # digits


def write_wheel(folder: Path) -> str:
    """Write the wheel of this library into a folder, which is made.

    Its version ends in a label of its content. So nothing on an index can be taken for it, since indexes take no
    versions with a label, and different code has different versions.

    Returns:
        The requirement of this very wheel, for pip.

    Raises:
        CalmError: The library is not installed, or lies in an archive.
    """
    installed = _installed()
    code, about = dict(_code(installed)), _about(installed)
    if not code:
        raise CalmError(f"{_NAME}: its files lie in no folder, as if it were run from an archive; install it with pip")
    digest = hashlib.sha256(repr(sorted((code | about).items())).encode()).hexdigest()
    version = f"{_public_version(installed)}+code{digest[:_LABEL]}"
    about["METADATA"] = _with_version(about["METADATA"], version)
    stem = f"{_NAME.replace('-', '_')}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    described = {f"{stem}.dist-info/{path}": data for path, data in about.items()}
    _write_archive(folder / f"{stem}-py3-none-any.whl", code | described, f"{stem}.dist-info/RECORD")
    return f"{_NAME}=={version}"


def needed_packages() -> list[str]:
    """What the bare library needs, in the versions that are installed here, for pip.

    Raises:
        CalmError: The library is not installed.
    """
    needed = map(Requirement, _installed().requires or [])
    names = [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [f"{name}=={_public_version(distribution(name))}" for name in names]


def _installed() -> Distribution:
    # A folder of sources holds an egg-info, without METADATA, which is found first where Python starts in that folder.
    for found in distributions(name=_NAME):
        if found.read_text("METADATA"):
            return found
    raise CalmError(f"{_NAME} is not installed, only its files are found; install it with pip")


def _public_version(package: Distribution) -> str:
    """Without a label, which says how it was built, such as +cpu."""
    return package.version.partition("+")[0]


def _code(installed: Distribution) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file of the packages, from where they are imported."""
    for name in (installed.read_text("top_level.txt") or "").split():
        spec = find_spec(name)
        for place in (spec.submodule_search_locations or []) if spec else []:
            root = Path(place)
            for path in sorted(root.rglob("*")):
                inside = path.relative_to(root)
                if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in inside.parts):
                    yield f"{name}/{inside.as_posix()}", path.read_bytes()


def _about(installed: Distribution) -> dict[str, bytes]:
    """The files that describe the distribution, by their path."""
    names = ("METADATA", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    texts = {name: installed.read_text(name) for name in names}
    texts["METADATA"] = _with_version((texts["METADATA"] or "").encode(), _public_version(installed)).decode()
    return {name: text.encode() for name, text in texts.items() if text is not None} | {"WHEEL": _WHEEL}


def _with_version(metadata: bytes, version: str) -> bytes:
    head, gap, text = metadata.partition(b"\n\n")
    lines = [f"Version: {version}".encode() if line.startswith(b"Version:") else line for line in head.split(b"\n")]
    return b"\n".join(lines) + gap + text


def _write_archive(path: Path, files: dict[str, bytes], record: str) -> None:
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    for name, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        writer.writerow((name, f"sha256={digest}", len(data)))
    writer.writerow((record, "", ""))
    with zipfile.ZipFile(path, "w") as archive:  # not compressed: other zlibs would make other bytes
        for name, data in [*sorted(files.items()), (record, rows.getvalue().encode())]:
            entry = zipfile.ZipInfo(name, _FIRST_DAY)
            entry.external_attr = _READABLE
            archive.writestr(entry, data)
