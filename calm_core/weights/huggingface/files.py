"""Files of a public folder, which comes from outside: what is read is bounded, and nothing in it is run.

Weights are mapped into memory: their names, shapes and dtypes are known before any of their numbers is read.
"""

import json
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from calm_core.errors import ArtifactError, first_line
from calm_core.shown import brief, shortened
from calm_core.store import nearby, storage
from calm_core.store.artifact import MANIFEST_NAME

SAFETENSORS_NAME, PICKLE_NAME = "model.safetensors", "pytorch_model.bin"
_LARGEST_JSON = 8 << 20  # bytes; the index of a model of 10^12 parameters has some
_LARGEST_TOKENIZER = 256 << 20
_LARGEST_HEADER = 32 << 20  # of a safetensors file, which has about 150 bytes for each weight
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SHOWN_NAMES = 8
_POINTER = b"version https://git-lfs"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

Weights = dict[str, Tensor]


def has_file(folder: Path, name: str) -> bool:
    """Whether a folder holds a file.

    Raises:
        StorageError: The name leaves the folder, or a link does.
    """
    with suppress(OSError):  # longer than any name can be, or in a folder that is closed
        return Path(storage.child(str(folder), name)).is_file()
    return False


def read_file(folder: Path, name: str, largest: int = _LARGEST_TOKENIZER) -> bytes:
    """The bytes of a file that the folder holds.

    Raises:
        ArtifactError: It is larger than such files are.
        StorageError: The name leaves the folder, or a link does.
    """
    path = Path(storage.child(str(folder), name))
    try:
        if (size := path.stat().st_size) > largest:
            raise ArtifactError(f"{path}: has {size:,} bytes, such a file has {largest:,} at most")
        _refuse_pointer(path)
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({first_line(error)})") from None


def _refuse_pointer(path: Path) -> None:
    """Raise an ArtifactError for what Git leaves in place of a large file that it has not downloaded."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ArtifactError(
                f"{path}: is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"
            )


def why_not_here(folder: Path) -> str:
    """Why a folder is no public checkpoint, where it has no config.json; and what to do."""
    name = str(folder)
    if folder.is_file():
        return f"is a file; name its folder, {folder.parent}"
    if not folder.is_dir():
        if _HUB_NAME.fullmatch(name) and not folder.parent.exists():
            return f"is no folder on this machine; download it first: hf download {name} --local-dir {folder.name}"
        return f"there is no such folder; {nearby.hint(name)}"
    if (folder / MANIFEST_NAME).is_file():
        return "is an artifact already, which every command takes as it is; a public checkpoint has a config.json"
    kinds = storage.kinds_in(name)
    if inner := [
        inside for inside, is_folder in kinds.items() if is_folder and (folder / inside / "config.json").is_file()
    ]:
        return f"holds no config.json; name one of its folders: {listed(inner)}"
    return f"holds no config.json; name the folder of a public checkpoint (it {nearby.holds(kinds)})"


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object that the folder holds.

    Raises:
        ArtifactError: It is none, or has numbers that JSON does not know.
        StorageError: The name leaves the folder, or a link does.
    """
    try:
        text = read_file(folder, name, _LARGEST_JSON).decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ArtifactError(f"{folder / name}: is no text in UTF-8; download it again") from None
    except RecursionError:
        raise ArtifactError(f"{folder / name}: is nested too deep for a {name}") from None
    except ValueError as error:  # also of numbers with thousands of digits
        raise ArtifactError(f"{folder / name}: is no JSON ({first_line(error)}); download it again") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{folder / name}: is no JSON object; download it again")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights in one of the forms that are read."""
    return any(
        has_file(folder, name + suffix) for name in (SAFETENSORS_NAME, PICKLE_NAME) for suffix in ("", ".index.json")
    )


def read_weights(folder: Path) -> Weights:
    """All weights of a folder, in the dtypes that they are stored in; their numbers stay on the disk until used.

    Raises:
        ArtifactError: There are none, or they are damaged, incomplete, or hold anything but floating-point tensors.
        StorageError: An index names a file outside the folder.
    """
    for name in (SAFETENSORS_NAME, PICKLE_NAME):
        if has_file(folder, name):
            return _read_shard(folder, name)
        if has_file(folder, f"{name}.index.json"):
            return _read_shards(folder, f"{name}.index.json")
    raise ArtifactError(
        f"{folder}: holds no weights ({SAFETENSORS_NAME} or {PICKLE_NAME}, whole or with an index); it "
        f"{nearby.holds(storage.kinds_in(str(folder)))}"
    )


def _read_shards(folder: Path, index: str) -> Weights:
    shard_of = read_object(folder, index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ArtifactError(f"{folder / index}: has no weight_map, an object of file names")
    shards = sorted(set(shard_of.values()))
    if missing := [shard for shard in shards if not has_file(folder, shard)]:
        raise ArtifactError(f"{folder / index}: files are missing: {listed(missing)}; download them")
    weights: Weights = {}
    for shard in shards:
        found = _read_shard(folder, shard)
        expected = {name for name, its_shard in shard_of.items() if its_shard == shard}
        if different := sorted(found.keys() ^ expected):
            raise ArtifactError(f"{folder / index}: {shard} and the index differ in {listed(different)}")
        weights |= found
    return weights


def _read_shard(folder: Path, name: str) -> Weights:
    path = Path(storage.child(str(folder), name))
    _refuse_pointer(path)
    try:
        found = _map_safetensors(path) if path.suffix == ".safetensors" else _map_pickle(path)
    except ArtifactError:
        raise
    except Exception as error:  # each format has its own kinds of damage
        raise ArtifactError(f"{path}: cannot be read ({first_line(error):.300}); download it again") from None
    if not isinstance(found, dict) or not found:
        raise ArtifactError(f"{path}: holds no weights by name")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ArtifactError(f"{path}: {brief(key)} is no tensor")
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _DTYPES:
            kind = str(value.dtype).removeprefix("torch.") + " in a sparse form" * (value.layout != torch.strided)
            raise ArtifactError(
                f"{path}: {brief(key)} holds {kind}; weights are dense and of float32, bfloat16, float16 or float64: "
                "save them as one of these"
            )
    # Views can share numbers: two names each are known (aliases), more would make a small file a large model.
    if sum(value.nbytes for value in found.values()) > 2 * path.stat().st_size:
        raise ArtifactError(f"{path}: its tensors are larger than the file; save it again, whole")
    return {name: value.detach() for name, value in found.items()}


def _map_safetensors(path: Path) -> Any:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(_LARGEST_HEADER, path.stat().st_size):
        raise ArtifactError(
            f"{path}: is truncated, or no such file (says that its header has {header:,} bytes); download it again"
        )
    return safetensors.torch.load_file(path)


def _map_pickle(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ArtifactError(f"{path}: is no file of torch.save, or is truncated; download it again")
    with zipfile.ZipFile(path) as archive:
        # torch stores files as they are; a packed one can grow a thousandfold, or be mapped as what it is not.
        if packed := [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]:
            raise ArtifactError(f"{path}: has packed files in it: {listed(packed)}; save it with torch.save")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # nothing but tensors is unpickled


def listed(names: list[str], most: int = _SHOWN_NAMES) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - most
    return ", ".join(shortened(name) for name in names[:most]) + (f" and {more} more" if more > 0 else "")
