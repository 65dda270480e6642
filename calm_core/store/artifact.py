"""Self-describing output folders. The manifest is written last, so its presence means "complete".

A reader checks what it reads: a missing, half-written or damaged artifact is an `ArtifactError` that names the file. A
manifest may come from outside: its paths stay in its folder, its values are validated, and none is acted upon before.

A manifest may also stand for an artifact beside it (`refer`): Kubeflow's launcher downloads all that lies under the URI
of an input, so that there lies the manifest alone.
"""

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from calm_core.errors import ArtifactError, StorageError
from calm_core.shown import listed
from calm_core.store import storage
from calm_core.store.code_version import code_version
from calm_core.store.facts import MANIFEST_NAME as MANIFEST_NAME
from calm_core.store.facts import ORIGIN, TIMING, Facts
from calm_core.store.facts import UNFINISHED_NAME as UNFINISHED_NAME
from calm_core.store.facts import FileEntry as FileEntry
from calm_core.store.lock import is_lock
from calm_core.store.mistaken import why_no_artifact, with_article

_LARGEST_MANIFEST = 128 << 20  # bytes: some 600,000 files
_COPIES = 16  # at a time
_CHECKS = 8
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NAMED = 3  # of the files that are in the way

FactsT = TypeVar("FactsT", bound=Facts)
FactsT_co = TypeVar("FactsT_co", bound=Facts, covariant=True)


KindName = Annotated[str, Field(pattern=r"^[a-z][a-z -]{0,63}$")]
_BESIDE = ".data"  # a name that no other begins with: launchers before 2.17 take all that begins with an input's URI


class Manifest(BaseModel):
    """What an artifact is and what it was made from, as it is stored; `Facts` gives its parts their types.

    `results` are the stage's numbers and repeat exactly. `timings` (seconds, rates) and `origins` (where the inputs
    lay) are of one run and take no part in the digest. `checksum` is of all the rest: those of earlier schema versions
    have none. `files_in` is of a manifest that stands for an artifact beside its folder: the place of that, seen from
    above the folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: KindName
    schema_version: int = Field(ge=1)
    config: dict[str, Any]
    parents: dict[str, str]
    code_version: str
    results: dict[str, Any]
    timings: dict[str, Any]
    origins: dict[str, Any] = {}
    files: list[FileEntry]
    files_in: str = ""
    checksum: str = ""

    @field_validator("files_in")
    @classmethod
    def _is_beside(cls, place: str) -> str:
        if place and not (storage.is_plain_path(place) and place.split("/")[:-1] == [_BESIDE]):
            raise ValueError(f"is no folder in {_BESIDE}")
        return place

    @field_validator("files")
    @classmethod
    def _each_once(cls, files: list[FileEntry]) -> list[FileEntry]:
        seen = {MANIFEST_NAME}
        for entry in files:
            if entry.path in seen:
                raise ValueError(f"{entry.path} is listed twice, or is the manifest itself")
            seen.add(entry.path)
        return files

    @property
    def digest(self) -> str:
        """SHA-256 of kind, config, parents, results and files: equal digests mean equal content."""
        return digest_of(self.model_dump(exclude={"code_version", "timings", "origins", "files_in", "checksum"}))

    @property
    def own_checksum(self) -> str:
        """What `checksum` has to be: SHA-256 of all other fields that were given."""
        return digest_of(self.model_dump(exclude={"checksum"}, exclude_unset=True))

    @classmethod
    def read(cls, uri: str, expected: str = "") -> Self:
        """The manifest of a complete artifact of any kind.

        Args:
            uri: The artifact's folder.
            expected: What is expected there, for the message of an error.

        Raises:
            ArtifactError: There is none, or it is damaged.
        """
        try:
            data = _manifest_bytes(uri)
        except _NO_FILE:
            raise ArtifactError(why_no_artifact(uri, expected)) from None
        # The head alone first: a manifest of a later schema may have other fields, and is not damaged.
        with _undamaged(uri, _ADVICE_FOR_ANY):
            head = _Head.model_validate_json(data, strict=True)
        kind = Facts.of_kind.get(head.kind)
        if kind and head.schema_version > kind.schema_version:
            raise _other_schema(uri, head.schema_version, kind)
        with _undamaged(uri):
            manifest = cls.model_validate_json(data, strict=True)
        needs_checksum = kind is not None and manifest.schema_version >= kind.checksum_since
        if (manifest.checksum or needs_checksum) and manifest.checksum != manifest.own_checksum:
            raise _damaged(uri, "its checksum differs")
        return manifest

    def is_of(self, config: Mapping[str, Any], parents: Mapping[str, str], regardless_of: Collection[str] = ()) -> bool:
        """Whether the artifact was made with this config, but for some of its keys, and these are among its parents."""
        here, there = (
            {key: value for key, value in values.items() if key not in regardless_of}
            for values in (json.loads(json.dumps(dict(config))), self.config)
        )
        return bool(here == there) and parents.items() <= self.parents.items()

    def upgraded(self, uri: str, kind: type[Facts]) -> Self:
        """This manifest in the form of the kind's schema version.

        Raises:
            ArtifactError: It is of a version that this code does not know.
        """
        if self.schema_version == kind.schema_version:
            return self
        try:
            config, results = kind.upgrade(self.schema_version, self.config, self.results)
        except (KeyError, TypeError, ValueError):
            raise _other_schema(uri, self.schema_version, kind) from None
        return self.model_copy(
            update={"config": config, "results": results, "schema_version": kind.schema_version}, deep=True
        )


class _Head(BaseModel):
    kind: KindName
    schema_version: int


def _other_schema(uri: str, version: int, kind: type[Facts]) -> ArtifactError:
    place = storage.join(uri, MANIFEST_NAME)
    if version > kind.schema_version:
        return ArtifactError(
            f"{place}: was written by a newer version of this library (schema {version}, this one reads up to "
            f"{kind.schema_version}); update it, or run the stage again with this one"
        )
    return ArtifactError(
        f"{place}: schema version {version}, this code reads {kind.schema_version}; run its stage again"
    )


def _manifest_bytes(uri: str) -> bytes:
    """What lies where an artifact's manifest is expected, if it is not too long to be one.

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError: There is no such file.
        ArtifactError: It is too long.
    """
    data = storage.read(storage.child(uri, MANIFEST_NAME), 0, _LARGEST_MANIFEST + 1)
    if len(data) > _LARGEST_MANIFEST:
        raise _damaged(uri, f"more than {_LARGEST_MANIFEST:,} bytes", _ADVICE_FOR_ANY)
    return data


_ADVICE = "delete the folder and run its stage again"
# Other programs' files are called manifest.json, too: nobody shall delete their folders.
_ADVICE_FOR_ANY = "name another folder, or delete this one if a stage has written it, and run the stage again"


def _damaged(uri: str, what: str, advice: str = _ADVICE) -> ArtifactError:
    return ArtifactError(f"{storage.join(uri, MANIFEST_NAME)}: damaged manifest ({what:.500}); {advice}")


@contextmanager
def _undamaged(uri: str, advice: str = _ADVICE) -> Iterator[None]:
    """Turn what does not validate into one line."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise _damaged(uri, f"{place}: {message}" if place else message, advice) from None


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as hex."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


class ArtifactWriter(Generic[FactsT]):
    """Write an artifact's files, then its manifest, when the block ends without an error.

    Nothing that lies at the place is lost unasked: it may hold nothing, what an interrupted writer of this kind has
    left, or the same artifact (of the same config and parents). Another one of this kind is replaced if `overwrite` is
    set, and then no file that its manifest does not list is touched; all else is refused.

    Args:
        uri: The artifact's folder.
        kind: What it is.
        config, parents: What it is made of.
        overwrite: Whether another one is replaced.
        regardless_of: Keys of the config that make no other artifact of it.

    Example:
        >>> with ArtifactWriter(uri, DuplicatesFacts, config={}, parents={}) as writer:
        ...     writer.write("dropped/00000.parquet", data)
        ...     writer.facts = DuplicatesFacts(duplicates=3, near_duplicates=0)

    Attributes:
        facts: What the manifest says; set before the block ends.
    """

    facts: FactsT

    def __init__(
        self,
        uri: str,
        kind: type[FactsT],
        config: Mapping[str, Any],
        parents: Mapping[str, str],
        *,
        overwrite: bool = False,
        regardless_of: Collection[str] = (),
    ) -> None:
        self.uri = uri
        self._regardless_of = regardless_of
        self._kind = kind.kind
        self._config = dict(config)
        self._parents = dict(parents)
        self._overwrite = overwrite
        self._files: list[FileEntry] = []

    def __enter__(self) -> Self:
        replaced = self._replaced(lambda manifest: manifest.parents == self._parents)
        storage.write(storage.child(self.uri, UNFINISHED_NAME), self._kind.encode())
        storage.remove_partial(self.uri)
        storage.remove([storage.child(self.uri, path) for path in replaced])  # from here on it is not complete
        return self

    def check(self, is_same: Callable[[Manifest], bool] = lambda manifest: True) -> None:
        """Refuse a place that cannot be written, before the work whose result shall go there.

        Not all parents need be known yet.

        Args:
            is_same: What else must hold of an artifact that lies there, beside its config and these parents, to be the
                same again.

        Raises:
            ArtifactError: What lies there is an input, or is not ours to replace.
            StorageError: It is no place, or the storage failed.
        """
        self._replaced(is_same)
        self.check_place()

    def check_place(self) -> None:
        """As `check`, as far as can be told before config and parents are known."""
        self._whole_one()
        with suppress(StorageError):  # not all that is above need be ours to read
            for folder in storage.path_to(self.uri)[1:]:
                if is_artifact(folder):
                    raise ArtifactError(f"{self.uri}: lies inside the artifact {folder}; name another output")
        storage.require_writable(self.uri)

    def _replaced(self, is_same: Callable[[Manifest], bool]) -> list[str]:
        """Files of an artifact that lies there and is replaced, the manifest first.

        Of a damaged or half-written one the manifest alone, since nothing vouches for other names.
        """
        manifest = self._whole_one()
        if manifest is None:
            return [MANIFEST_NAME]
        ours = [MANIFEST_NAME, *(entry.path for entry in manifest.files), *self._aside()]
        if not (manifest.is_of(self._config, self._parents, self._regardless_of) and is_same(manifest)):
            if not self._overwrite:
                raise ArtifactError(
                    f"{self.uri}: holds another {self._kind}, of other settings or inputs; name another output, or "
                    "replace it with overwrite=True"
                )
            if others := self._others(ours):
                raise ArtifactError(
                    f"{self.uri}: also holds {listed(others, _NAMED)}, not listed in its {MANIFEST_NAME}; move what is "
                    "yours away, or name another output"
                )
        return ours

    def _whole_one(self) -> Manifest | None:
        """The artifact of this kind that lies there; None where there is nothing, or what is left of one."""
        if storage.exists(self.uri) and not storage.is_folder(self.uri):
            raise ArtifactError(f"{self.uri}: is no folder; name another output")
        names = [name for name in storage.names_in(self.uri) if not _passes(name)]
        unfinished = self._unfinished_kind() if UNFINISHED_NAME in names else None
        if MANIFEST_NAME not in names or storage.is_folder(storage.join(self.uri, MANIFEST_NAME)):
            if names and unfinished is None:
                raise ArtifactError(
                    f"{self.uri}: holds other files ({listed(names, _NAMED)}); name another output, a new or an empty "
                    "folder"
                )
            self._refuse_kind(unfinished or self._kind)
            return None
        try:
            manifest = Manifest.read(self.uri)
        except ArtifactError as error:
            if unfinished == self._kind or self._is_left_over():
                return None
            raise ArtifactError(f"{error}; or name another output") from None
        if manifest.digest in self._parents.values():
            raise ArtifactError(f"{self.uri}: is an input of what is to be written there; name another output")
        self._refuse_kind(manifest.kind)
        return manifest

    def _aside(self) -> list[str]:
        """Files of the artifact that lies there and is of this kind, beside those that its manifest lists."""
        with suppress(ArtifactError):
            return [entry.path for entry in Artifact.of_any_kind(self.uri).facts.aside]
        return []

    def _unfinished_kind(self) -> str:
        told = b""
        with suppress(*_NO_FILE):  # another writer has finished since
            told = storage.read(storage.child(self.uri, UNFINISHED_NAME), 0, 64)
        return told.decode(errors="replace").strip("\0") or self._kind  # after a loss of power it may be empty

    def _refuse_kind(self, kind: str) -> None:
        if kind != self._kind:
            raise ArtifactError(f"{self.uri}: holds an artifact of kind {kind}, not {self._kind}; name another output")

    def _is_left_over(self) -> bool:
        """Whether a damaged manifest is the empty rest of a crash, and alone; or shows its kind and may be replaced."""
        head = b"?"
        with suppress(*_NO_FILE):
            head = storage.read(storage.child(self.uri, MANIFEST_NAME), 0, 256)
        if not head.strip(b"\0"):
            return not self._others([MANIFEST_NAME])
        return self._overwrite and f'"kind": "{self._kind}"'.encode() in head

    def _others(self, listed: list[str]) -> list[str]:
        """Files that lie there, and are neither listed nor a writer's own."""
        folder = storage.absolute(self.uri).rstrip("/") + "/"
        paths = {uri.removeprefix(folder) for uri in storage.files_below(self.uri)} - {UNFINISHED_NAME, *listed}
        return sorted(path for path in paths if not _passes(path.rpartition("/")[2]))

    def write(self, path: str, data: bytes) -> None:
        """Write one file from memory."""
        with self.create(path) as file:
            file.write(data)

    def write_aside(self, path: str, data: bytes) -> FileEntry:
        """Write one file from memory that the facts vouch for (`Facts.aside`), and that the digest leaves out."""
        with storage.create(storage.child(self.uri, path)) as file:
            file.write(data)
        return FileEntry(path=path, size=file.size, sha256=file.sha256)

    @contextmanager
    def create(self, path: str) -> Iterator[storage.DigestingFile]:
        """Write one file piece by piece."""
        with storage.create(storage.child(self.uri, path)) as file:
            yield file
        self._files.append(FileEntry(path=path, size=file.size, sha256=file.sha256))

    def copy(self, source: "Artifact[Facts]", paths: Mapping[str, str]) -> None:
        """Copy files of another artifact, side by side.

        Each is checked first: its entry is taken over, and a copy may be no more than a second name of the same bytes.
        So nothing is published that its source's manifest does not vouch for; a file is read once for it.

        Args:
            source: Where they are.
            paths: The new path of each path.

        Raises:
            ArtifactError: One is missing or damaged.
        """

        def copy_one(path: str, target_path: str) -> None:
            source.check(path)
            try:
                storage.copy(source.uri_of(path), storage.child(self.uri, target_path))
            except _NO_FILE:
                raise source.missing(path) from None

        with ThreadPoolExecutor(_COPIES) as pool:
            list(pool.map(copy_one, paths.keys(), paths.values()))
        self._files += [source.entry(old).model_copy(update={"path": new}) for old, new in paths.items()]

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error_type is not None:
            return
        publish(self.uri, self.facts, self._files, self._config, self._parents)
        storage.remove([storage.child(self.uri, UNFINISHED_NAME)])


def publish(
    uri: str,
    facts: Facts,
    files: Iterable[FileEntry],
    config: Mapping[str, Any] | None = None,
    parents: Mapping[str, str] | None = None,
) -> None:
    """Write the manifest of files that lie in a folder, which makes an artifact of them.

    Raises:
        ArtifactError: They are more than a manifest may list.
        StorageError: It cannot be written.
    """
    manifest = Manifest(
        kind=facts.kind,
        schema_version=facts.schema_version,
        config=dict(config or {}),
        parents=dict(parents or {}),
        code_version=code_version(),
        results=facts.part("results"),
        timings=facts.part(TIMING),
        origins=facts.part(ORIGIN),
        files=sorted(files, key=lambda entry: entry.path),
    )
    _write_manifest(uri, manifest)


def _write_manifest(uri: str, manifest: Manifest) -> None:
    manifest = manifest.model_copy(update={"checksum": manifest.own_checksum})
    data = manifest.model_dump_json(indent=1, exclude_unset=True).encode() + b"\n"
    if len(data) > _LARGEST_MANIFEST:
        raise ArtifactError(
            f"{uri}: its {len(manifest.files):,} files are more than a manifest may list; make fewer, larger ones"
        )
    storage.write(storage.child(uri, MANIFEST_NAME), data)


def place_beside(uri: str) -> str:
    """Where an artifact is written that a manifest in this folder shall stand for."""
    above, name = _above(uri)
    return storage.join(above, _BESIDE, name)


def refer(uri: str) -> None:
    """Write a manifest into a folder that stands for the artifact at its `place_beside`.

    Who opens the folder opens that artifact, as long as both keep their places to each other.

    Raises:
        ArtifactError: There is none.
        StorageError: It cannot be written.
    """
    manifest = Manifest.read(place_beside(uri))
    _write_manifest(uri, manifest.model_copy(update={"files_in": f"{_BESIDE}/{_above(uri)[1]}"}))


def _above(uri: str) -> tuple[str, str]:
    """The folder above a folder, and the name there."""
    above, _, name = storage.real(uri).rpartition("/")
    return above, name


def _passes(name: str) -> bool:
    """Whether a file is of somebody at work, and no part of an artifact."""
    return storage.is_partial(name) or is_lock(name)


def is_artifact(uri: str) -> bool:
    """Whether a complete artifact lies at a URI."""
    with suppress(ArtifactError):
        return storage.exists(storage.join(uri, MANIFEST_NAME)) and bool(Manifest.read(uri))
    return False


class Artifact(Generic[FactsT_co]):
    """A complete artifact, opened for reading.

    Args:
        uri: Its folder.
        kinds: What it may be.

    Attributes:
        uri: The folder of its files: the one beside, if a manifest stands for it.
        facts: What its manifest says, validated.
        digest: Equal digests mean equal content.

    Raises:
        ArtifactError: The folder has no manifest, or it is unreadable, of none of the kinds, or of an unknown schema
            version.
    """

    facts: FactsT_co

    def __init__(self, uri: str, *kinds: type[FactsT_co]) -> None:
        self.uri = uri
        expected = " or ".join(kind.kind for kind in kinds)
        manifest = Manifest.read(uri, expected)
        kind = next((kind for kind in kinds if kind.kind == manifest.kind), None)
        if kind is None:
            kind_found, kind_expected = with_article(manifest.kind), with_article(expected)
            raise ArtifactError(f"{uri}: is {kind_found} artifact, {kind_expected} artifact was expected")
        if manifest.files_in:
            self.uri = storage.child(_above(uri)[0], manifest.files_in)
        self.digest = manifest.digest
        self.manifest = manifest.upgraded(uri, kind)
        with _undamaged(uri):
            parts = {"results": self.manifest.results, ORIGIN: self.manifest.origins, TIMING: self.manifest.timings}
            self.facts = kind.read(parts)
        if unlisted := sorted(set(self.facts.paths) - self._entries.keys()):
            raise _damaged(uri, f"files: lacks {unlisted[0]}")

    @classmethod
    def of_any_kind(cls, uri: str) -> "Artifact[Facts]":
        """An artifact of whatever kind lies at a URI."""
        kind = Manifest.read(uri).kind
        if kind not in Facts.of_kind:
            raise ArtifactError(f"{uri}: this code knows no artifacts of kind {kind}; update it")
        return Artifact(uri, Facts.of_kind[kind])

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in (*self.manifest.files, *self.facts.aside)}

    def entry(self, path: str) -> FileEntry:
        """The manifest's entry of one file."""
        try:
            return self._entries[path]
        except KeyError:
            raise ArtifactError(f"{self.uri}: its manifest lists no file {path}") from None

    def uri_of(self, path: str) -> str:
        """Where one of its files lies.

        Raises:
            ArtifactError: The manifest lists no such file.
            StorageError: A link there leads out of the folder.
        """
        return storage.child(self.uri, self.entry(path).path)

    def read(self, path: str) -> bytes:
        """The bytes of one file, checked against the manifest."""
        entry, uri = self.entry(path), self.uri_of(path)
        try:
            if storage.size(uri) != entry.size:  # first: it may have become larger than the memory
                raise self.damaged(path)
            data = storage.read(uri)
        except _NO_FILE:
            raise self.missing(path) from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise self.damaged(path)
        return data

    def open(self, path: str) -> io.BytesIO:
        """One checked file as an in-memory stream."""
        return io.BytesIO(self.read(path))

    def read_json(self, path: str) -> Any:
        """One checked JSON file."""
        return json.loads(self.read(path))

    def missing(self, path: str) -> ArtifactError:
        """The error of a file that is gone."""
        return ArtifactError(
            f"{storage.join(self.uri, path)}: file is missing; delete {self.uri} and run its stage again"
        )

    def damaged(self, path: str, what: str = "SHA-256 differs") -> ArtifactError:
        """The error of a file that has other bytes than were written, or others than the manifest says."""
        uri = storage.join(self.uri, path)
        return ArtifactError(f"{uri}: file is damaged ({what}); delete {self.uri} and run its stage again")

    def check(self, path: str) -> None:
        """Check one file, of any size, block by block.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        entry, uri = self.entry(path), self.uri_of(path)
        try:
            is_whole = storage.size(uri) == entry.size and storage.sha256_of(uri) == entry.sha256
        except _NO_FILE:
            raise self.missing(path) from None
        if not is_whole:
            raise self.damaged(path)

    def check_files(
        self, paths: Iterable[str] | None = None, on_checked: Callable[[FileEntry], object] | None = None
    ) -> None:
        """Check files, many at a time.

        Args:
            paths: Which; unset, all of them.
            on_checked: Called with the entry of each file once it has been checked.

        Raises:
            ArtifactError: Some are missing or damaged: names the first by path, and says how many more.
        """
        damage: dict[str, ArtifactError] = {}
        with ThreadPoolExecutor(_CHECKS) as pool:
            checks = {pool.submit(self.check, path): path for path in (self._entries if paths is None else paths)}
            for check in as_completed(checks):
                path, error = checks[check], check.exception()
                if isinstance(error, ArtifactError):
                    damage[path] = error
                elif error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise error
                if on_checked:
                    on_checked(self.entry(path))
        if damage:
            more = f" (and {len(damage) - 1} more files)" if len(damage) > 1 else ""
            raise ArtifactError(f"{damage[min(damage)]}{more}")


def reusable(
    uri: str, kind: type[FactsT], config: Mapping[str, Any], parents: Mapping[str, str]
) -> Artifact[FactsT] | None:
    """What lies at a URI already, if it was made from the same inputs by the same code, and all its files are whole.

    Its files are read for this. Whatever reads them later would find damage too, but could only refuse it; here what is
    damaged is made anew, which repairs it.
    """
    if not storage.exists(storage.join(uri, MANIFEST_NAME)):
        return None
    try:
        artifact = Artifact(uri, kind)
    except ArtifactError:
        return None
    manifest = artifact.manifest
    same = manifest.is_of(config, parents) and manifest.parents == dict(parents)
    if not same or manifest.code_version != code_version():
        return None
    try:
        artifact.check_files()
    except ArtifactError:
        return None
    return artifact
