"""Self-describing output folders. The manifest is written last, so its presence means "complete".

A reader checks what it reads: a missing, half-written or damaged artifact is an `ArtifactError` that names the file.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from calm_core.errors import ArtifactError
from calm_core.store import storage
from calm_core.store.code_version import code_version

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
_COPIES = 16  # at a time


class FileEntry(BaseModel):
    """One file of an artifact: path relative to its folder, size in bytes, SHA-256 as hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is and what it was made from.

    `results` are the stage's numbers and repeat exactly. `timings` (seconds, rates) and `origins` (where the inputs
    lay) are of one run and take no part in the digest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    schema_version: int
    config: dict[str, Any]
    parents: dict[str, str]
    code_version: str
    results: dict[str, Any]
    timings: dict[str, float]
    origins: dict[str, Any] = {}
    files: list[FileEntry]

    @property
    def digest(self) -> str:
        """SHA-256 of kind, config, parents, results and files: equal digests mean equal content."""
        return digest_of(self.model_dump(exclude={"code_version", "timings", "origins"}))


class _SchemaVersion(BaseModel):
    schema_version: int


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as hex."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


class ArtifactWriter:
    """Write an artifact's files, then its manifest, when the block ends without an error.

    Example:
        >>> with ArtifactWriter(uri, "tokenizer", config={"vocab_size": 2048}, parents={}) as writer:
        ...     writer.write("tokenizer.json", data)
        ...     writer.results["vocab_size"] = 2048
    """

    def __init__(self, uri: str, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> None:
        self.uri = uri
        self.results: dict[str, Any] = {}
        self.timings: dict[str, float] = {}
        self.origins: dict[str, Any] = {}
        self._kind = kind
        self._config = dict(config)
        self._parents = dict(parents)
        self._files: list[FileEntry] = []

    def __enter__(self) -> Self:
        storage.remove_partial(self.uri)
        manifest_uri = storage.join(self.uri, MANIFEST_NAME)
        if storage.exists(manifest_uri):  # being replaced: from here on the folder is not complete
            replaced: list[FileEntry] = []
            with suppress(ValidationError):
                manifest = Manifest.model_validate_json(storage.read(manifest_uri))
                if manifest.digest in self._parents.values():
                    raise ArtifactError(f"{self.uri}: is an input of what is to be written there; name another output")
                if manifest.kind != self._kind:
                    raise ArtifactError(
                        f"{self.uri}: holds an artifact of kind {manifest.kind}, not {self._kind}; name another output"
                    )
                replaced = manifest.files
            storage.remove([manifest_uri])
            storage.remove([storage.join(self.uri, entry.path) for entry in replaced])
        return self

    def write(self, path: str, data: bytes) -> None:
        """Write one file from memory."""
        with self.create(path) as file:
            file.write(data)

    @contextmanager
    def create(self, path: str) -> Iterator[storage.DigestingFile]:
        """Write one file piece by piece."""
        with storage.create(storage.join(self.uri, path)) as file:
            yield file
        self._files.append(FileEntry(path=path, size=file.size, sha256=file.sha256))

    def copy(self, source: "Artifact", paths: Mapping[str, str]) -> None:
        """Copy files of another artifact, side by side.

        Their entries are taken over, so a damaged copy is found by whoever reads it.

        Args:
            source: Where they are.
            paths: The new path of each path.
        """

        def copy_one(path: str, target_path: str) -> None:
            try:
                storage.copy(storage.join(source.uri, path), storage.join(self.uri, target_path))
            except FileNotFoundError:
                raise ArtifactError(source.missing(path)) from None

        with ThreadPoolExecutor(_COPIES) as pool:
            list(pool.map(copy_one, paths.keys(), paths.values()))
        self._files += [source.entry(old).model_copy(update={"path": new}) for old, new in paths.items()]

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error_type is not None:
            return
        manifest = Manifest(
            kind=self._kind,
            schema_version=SCHEMA_VERSION,
            config=self._config,
            parents=self._parents,
            code_version=code_version(),
            results=self.results,
            timings=self.timings,
            origins=self.origins,
            files=sorted(self._files, key=lambda entry: entry.path),
        )
        storage.write(storage.join(self.uri, MANIFEST_NAME), manifest.model_dump_json(indent=1).encode() + b"\n")


class Artifact:
    """A complete artifact, opened for reading.

    Raises:
        ArtifactError: The folder has no manifest, or it is unreadable, of none of the kinds, or of another schema
            version.
    """

    def __init__(self, uri: str, *kinds: str) -> None:
        self.uri = uri
        self.manifest = self.manifest_of(uri, kinds[0])
        if self.manifest.kind not in kinds:
            raise ArtifactError(
                f"{uri}: is a {self.manifest.kind} artifact, a {' or '.join(kinds)} artifact was expected"
            )

    @classmethod
    def manifest_of(cls, uri: str, kind: str = "") -> Manifest:
        """The manifest of a complete artifact of any kind.

        Args:
            uri: The artifact's folder.
            kind: What is expected there, for the message of an error.
        """
        name = f"{kind} artifact".lstrip()
        manifest_uri = storage.join(uri, MANIFEST_NAME)
        try:
            data = storage.read(manifest_uri)
            cls._refuse_other_schema(manifest_uri, data)
            return Manifest.model_validate_json(data)
        except (FileNotFoundError, NotADirectoryError):
            state = "half-written (its stage did not finish)" if storage.exists(uri) else "missing"
            message = f"{uri}: the {name} is {state}: no {MANIFEST_NAME}; run its stage again"
            raise ArtifactError(message) from None
        except ValidationError as error:
            raise ArtifactError(
                f"{manifest_uri}: damaged manifest ({error.errors()[0]['msg']}); "
                "delete the folder and run its stage again"
            ) from None

    @staticmethod
    def _refuse_other_schema(manifest_uri: str, manifest: bytes) -> None:
        """Read the version alone: a manifest of another schema may have other fields, and is not damaged."""
        version = _SchemaVersion.model_validate_json(manifest).schema_version
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{manifest_uri}: schema version {version}, this code reads {SCHEMA_VERSION}; run its stage again"
            )

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.manifest.files}

    def entry(self, path: str) -> FileEntry:
        """The manifest's entry of one file."""
        try:
            return self._entries[path]
        except KeyError:
            raise ArtifactError(f"{self.uri}: its manifest lists no file {path}") from None

    def read(self, path: str) -> bytes:
        """The bytes of one file, checked against the manifest."""
        entry = self.entry(path)
        try:
            data = storage.read(storage.join(self.uri, path))
        except FileNotFoundError:
            raise ArtifactError(self.missing(path)) from None
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ArtifactError(self.damaged(path))
        return data

    def open(self, path: str) -> io.BytesIO:
        """One checked file as an in-memory stream."""
        return io.BytesIO(self.read(path))

    def read_json(self, path: str) -> Any:
        """One checked JSON file."""
        return json.loads(self.read(path))

    def missing(self, path: str) -> str:
        """What to tell when a file is gone."""
        return f"{storage.join(self.uri, path)}: file is missing; delete {self.uri} and run its stage again"

    def damaged(self, path: str) -> str:
        """What to tell when a file has other bytes than were written."""
        uri = storage.join(self.uri, path)
        return f"{uri}: file is damaged (SHA-256 differs); delete {self.uri} and run its stage again"

    def check(self, path: str) -> None:
        """Check one file, of any size, block by block.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        try:
            sha256 = storage.sha256_of(storage.join(self.uri, path))
        except FileNotFoundError:
            raise ArtifactError(self.missing(path)) from None
        if sha256 != self.entry(path).sha256:
            raise ArtifactError(self.damaged(path))


def reusable(uri: str, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> Artifact | None:
    """What lies at a URI already, if it was made from the same inputs by the same code."""
    if not storage.exists(storage.join(uri, MANIFEST_NAME)):
        return None
    try:
        artifact = Artifact(uri, kind)
    except ArtifactError:
        return None
    manifest = artifact.manifest
    same = manifest.config == json.loads(json.dumps(dict(config))) and manifest.parents == dict(parents)
    return artifact if same and manifest.code_version == code_version() else None
