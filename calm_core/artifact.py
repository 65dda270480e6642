"""Self-describing output folders. The manifest is written last, so its presence means "complete".

A reader checks what it reads: a missing, half-written or damaged artifact is an `ArtifactError` that names the file.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from fsspec.core import url_to_fs
from pydantic import BaseModel, ConfigDict, ValidationError

from calm_core import storage
from calm_core.code_version import code_version
from calm_core.errors import ArtifactError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1


class FileEntry(BaseModel):
    """One file of an artifact: path relative to its folder, size in bytes, SHA-256 as hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is and what it was made from.

    `results` are the stage's numbers and repeat exactly; `timings` (seconds, rates) are of one run and take no part in
    the digest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    schema_version: int
    config: dict[str, Any]
    parents: dict[str, str]
    code_version: str
    results: dict[str, Any]
    timings: dict[str, float]
    files: list[FileEntry]

    @property
    def digest(self) -> str:
        """SHA-256 of kind, config, parents, results and files: equal digests mean equal content."""
        return digest_of(self.model_dump(exclude={"code_version", "timings"}))


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
        self._kind = kind
        self._config = dict(config)
        self._parents = dict(parents)
        self._files: list[FileEntry] = []

    def __enter__(self) -> Self:
        filesystem, path = url_to_fs(storage.join(self.uri, MANIFEST_NAME))
        if filesystem.exists(path):  # being replaced: from here on the folder is not complete
            filesystem.rm_file(path)
        return self

    def write(self, path: str, data: bytes) -> None:
        """Write one file from memory."""
        with storage.open_uri(storage.join(self.uri, path), "wb") as file:
            file.write(data)
        self._files.append(FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()))

    def copy(self, source: "Artifact", path: str, target_path: str) -> None:
        """Copy a file of another artifact; its entry is taken over, so a damaged copy is found by whoever reads it."""
        storage.copy(storage.join(source.uri, path), storage.join(self.uri, target_path))
        self._files.append(source.entry(path).model_copy(update={"path": target_path}))

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
            files=sorted(self._files, key=lambda entry: entry.path),
        )
        with storage.open_uri(storage.join(self.uri, MANIFEST_NAME), "wb") as file:
            file.write(manifest.model_dump_json(indent=1).encode() + b"\n")


class Artifact:
    """A complete artifact, opened for reading.

    Raises:
        ArtifactError: The folder has no manifest, or it is unreadable, of none of the kinds, or of another schema
            version.
    """

    def __init__(self, uri: str, *kinds: str) -> None:
        self.uri = uri
        kind = " or ".join(kinds)
        manifest_uri = storage.join(uri, MANIFEST_NAME)
        try:
            with storage.open_uri(manifest_uri) as file:
                data = file.read()
            self._refuse_other_schema(data)
            self.manifest = Manifest.model_validate_json(data)
        except (FileNotFoundError, NotADirectoryError):
            state = "half-written (its stage did not finish)" if storage.exists(uri) else "missing"
            message = f"{uri}: the {kind} artifact is {state}: no {MANIFEST_NAME}; run its stage again"
            raise ArtifactError(message) from None
        except ValidationError as error:
            raise ArtifactError(
                f"{manifest_uri}: damaged manifest ({error.errors()[0]['msg']}); "
                "delete the folder and run its stage again"
            ) from None
        if self.manifest.kind not in kinds:
            raise ArtifactError(f"{uri}: is a {self.manifest.kind} artifact, a {kind} artifact was expected")

    def _refuse_other_schema(self, manifest: bytes) -> None:
        """Read the version alone: a manifest of another schema may have other fields, and is not damaged."""
        version = _SchemaVersion.model_validate_json(manifest).schema_version
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{storage.join(self.uri, MANIFEST_NAME)}: schema version {version}, this code reads "
                f"{SCHEMA_VERSION}; run its stage again"
            )

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def entry(self, path: str) -> FileEntry:
        """The manifest's entry of one file."""
        for entry in self.manifest.files:
            if entry.path == path:
                return entry
        raise ArtifactError(f"{self.uri}: its manifest lists no file {path}")

    def read(self, path: str) -> bytes:
        """The bytes of one file, checked against the manifest."""
        entry = self.entry(path)
        uri = storage.join(self.uri, path)
        try:
            with storage.open_uri(uri) as file:
                data: bytes = file.read()
        except FileNotFoundError:
            raise ArtifactError(f"{uri}: file is missing; delete {self.uri} and run its stage again") from None
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ArtifactError(f"{uri}: file is damaged (SHA-256 differs); delete {self.uri} and run its stage again")
        return data

    def open(self, path: str) -> io.BytesIO:
        """One checked file as an in-memory stream."""
        return io.BytesIO(self.read(path))

    def read_json(self, path: str) -> Any:
        """One checked JSON file."""
        return json.loads(self.read(path))

    def verify(self) -> None:
        """Check every file."""
        for entry in self.manifest.files:
            self.read(entry.path)
