"""Files on any fsspec URL: a local path and ``s3://bucket/key`` behave alike.

A text without ``scheme://`` is a local path, and is taken as it stands: nothing in it is a pattern, an escape, or
another URL, but ``~/`` is the user's home. `glob` alone takes patterns.

An object store's endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY), never from a setting; ``minio://``, Kubeflow's name for S3 at an endpoint of one's own, is read
as ``s3://``. What it fails to answer is asked again with growing pauses, AWS_MAX_ATTEMPTS times in all (7 where unset:
about half a minute); then there is a `StorageError`. Somebody who waits for an answer (`first_answer_soon`) learns of
an endpoint that is not there in seconds.
"""

import difflib
import errno
import glob as local_glob
import hashlib
import io
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from calm_core.errors import CalmError, StorageError, first_line
from calm_core.shown import WHERE_SECRETS_GO, holds_secret

_BLOCK_BYTES = 1 << 20
_PARTIAL = ".calm.partial"
_LEFTOVER = re.compile(r"\..+\.\d+\.calm\.partial", re.DOTALL)
_ATTEMPTS = 7
_TAG = "etag-"
_REMOTE_BLOCK_BYTES = 8 << 20  # what a request moves, and what an open file keeps in memory
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAME_IS_TOO_LONG = "the name is too long for the disk; name another place"
_DISK_IS_FULL = "cannot be written, the disk is full; free space, then run again"
_FOR_THE_CALLER = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LOCAL_SCHEMES, _WITHOUT_HOST = ("file", "local"), ("file", "local", "memory")
_OBJECT_STORES = ("s3", "s3a")
_S3_OF_KUBEFLOW = "minio"
_ONE_SLASH = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)(.*)", re.DOTALL | re.IGNORECASE)
_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
AROUND = " \t\"'`\u2018\u2019\u201c\u201d"  # what comes along when a path is copied
_FIRST_ANSWER_SECONDS = 4
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are no UTF-8
_LONGEST_PATH = 1024
_LONGEST_NAME = 255  # bytes, on the usual file systems
_NOT_NEW = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_CLAIM_SECONDS = 1.0
"""After which a claim is looked at again: a store that knows no conditions lets the last of several writers win."""
_TRIAL_NAME, _TRIAL_BYTES = ".calm-trial", 4096


def filesystem_of(uri: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URI, and the path there.

    All that a user, a setting or a manifest names as a place goes through here.

    Raises:
        StorageError: It is empty, has a control character or a secret, or no file system has this protocol.
    """
    if holds_secret(uri):
        raise StorageError(f"{uri}: {WHERE_SECRETS_GO}")
    if not uri or _NO_TEXT.search(uri):
        reason = "has a control character or is no UTF-8; rename it" if uri else "is empty; name a file or folder"
        raise StorageError(f"{uri!a:.300}: the path {reason}")
    _refuse_slips(uri)
    url = _URL.fullmatch(uri)
    scheme, rest = (url[1].lower(), url[2]) if url else ("file", uri)
    if scheme in _LOCAL_SCHEMES:
        if url and not rest.startswith("/"):
            raise StorageError(f"{uri}: is no absolute path; write file:///folder/file, or the path alone")
        return LocalFileSystem(), _local_path(rest)
    if not rest or (scheme not in _WITHOUT_HOST and rest.startswith(("/", "?"))):
        raise StorageError(f"{uri}: names no bucket or host; write {scheme}://bucket/folder")
    if scheme in ("http", "https"):
        raise StorageError(
            f"{uri}: lies on the web, where nothing is read; download it (curl -L -O URL) and name the file; "
            "local paths and object stores are used, e.g. s3://bucket/folder"
        )
    if scheme == _S3_OF_KUBEFLOW:
        if not _endpoint():
            raise StorageError(
                f"{uri}: lies at an endpoint that is not known here; set AWS_ENDPOINT_URL to its address"
            )
        scheme = "s3"
    options: dict[str, Any] = {}
    if scheme in _OBJECT_STORES:
        # Without a cache of listings, what another process writes or deletes is seen.
        options = {"use_listings_cache": False, "default_block_size": _REMOTE_BLOCK_BYTES}
        if not os.environ.get("AWS_MAX_ATTEMPTS"):
            options["config_kwargs"] = {"retries": {"total_max_attempts": _ATTEMPTS}}
    try:
        # Not fsspec's `url_to_fs`: it takes "::" for a chain of URLs, the first of which reads the others.
        kind = get_filesystem_class(scheme)
        url_text = f"{scheme}://{rest}"
        filesystem, path = kind(**options, **kind._get_kwargs_from_urls(url_text)), kind._strip_protocol(url_text)
    except Exception as error:  # each file system's constructor has its own
        raise StorageError(f"{uri}: {_why_no_filesystem(scheme, error)}") from None
    if scheme in _OBJECT_STORES:
        _require_first_answer(uri, kind, path.partition("/")[0])
    return filesystem, path


def _refuse_slips(uri: str) -> None:
    """Raise a StorageError for what is a path on paper alone: nobody has such a folder, but it would be made."""
    plain = uri.strip(AROUND)
    if plain != uri and _URL.fullmatch(plain) and not _URL.fullmatch(uri):
        raise StorageError(f"{uri!a:.300}: has spaces or quotes around it; write {plain}")
    if (slip := _ONE_SLASH.match(uri)) and slip[1].lower() in known_implementations:
        slashes = ":///" if slip[1].lower() in _WITHOUT_HOST else "://"
        raise StorageError(f"{uri}: has one slash behind {slip[1]}:, a URL two; write {slip[1]}{slashes}{slip[2]}")
    if os.name != "nt" and _OF_WINDOWS.match(uri):
        raise StorageError(f"{uri}: is a path of Windows; write it as here, e.g. /mnt/c/texts for C:\\texts in WSL")


def _why_no_filesystem(scheme: str, error: Exception) -> str:
    """Why the file system of a scheme cannot be made, and what to do."""
    known = known_implementations.get(scheme)
    if known is None:
        close = difflib.get_close_matches(scheme, ["s3", "gs", "abfs", "hdfs", "file"], n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}://?" if close else "; name a local path, or e.g. s3://bucket/folder"
        return f"cannot be used, nothing is known of {scheme}://{hint}"
    package = known["class"].partition(".")[0]
    if isinstance(error, ImportError) and package != "fsspec":
        return f"cannot be used without the package {package}; install it: pip install {package}"
    return f"cannot be used ({first_line(error)}); check the URL, or install its file system"


_answering: ContextVar[set[str] | None] = ContextVar("_answering", default=None)
"""The endpoints that have answered to somebody who waits; None where nobody does."""


@contextmanager
def first_answer_soon() -> Iterator[None]:
    """In this block, a program that somebody waits for: an object store has to answer in seconds at its first use.

    Once it has answered, it is asked again and again, as always: work that is under way outlasts a failure.
    """
    token = _answering.set(set())
    try:
        yield
    finally:
        _answering.reset(token)


def _require_first_answer(uri: str, kind: Any, bucket: str) -> None:
    """Raise a StorageError where somebody waits, and the object store does not answer to the first request.

    Whatever it answers is an answer: the request that matters gets its own.
    """
    answering = _answering.get()
    endpoint = _endpoint() or bucket
    if answering is None or endpoint in answering:
        return
    seconds = {"connect_timeout": _FIRST_ANSWER_SECONDS, "read_timeout": 2 * _FIRST_ANSWER_SECONDS}
    retries = {"retries": {"total_max_attempts": 1}}
    with translating_errors(uri):
        filesystem = kind(config_kwargs=seconds | retries, skip_instance_cache=True)
        filesystem.retries = 1
        try:
            filesystem.call_s3("head_bucket", Bucket=bucket)
        except OSError as error:
            if not hasattr(error.__cause__, "response"):
                raise
    answering.add(endpoint)


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _local_path(path: str) -> str:
    """An absolute path. A ".." stays: after a link, it leads elsewhere than one step back."""
    if path == "~" or path.startswith("~/"):
        path = str(Path(path).expanduser())
    return "/" + str(Path.cwd() / path).lstrip("/")


@contextmanager
def translating_errors(uri: str) -> Iterator[None]:
    """Turn what a storage raises into one line that says what to do.

    Raises:
        FileNotFoundError: There is no such file, or what should be its folder is a file; as other errors that say what
            is at the URI, it is let through.
        StorageError: The storage does not answer, refuses, or is full.
    """
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, "no such file", uri) from error
    except (*_FOR_THE_CALLER, CalmError):
        raise
    except PermissionError as error:
        if error.errno is None:  # an object store's; the system's have a number
            reason = f"the object store denies access ({first_line(error)}); check AWS_ACCESS_KEY_ID and "
            reason += "AWS_SECRET_ACCESS_KEY, and what they may do there"
        else:
            reason = "access is denied; change its permissions, or run as a user who has them"
        raise StorageError(f"{uri}: {reason}") from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(f"{uri}: {_DISK_IS_FULL}", can_pass=True) from error
        if error.errno == errno.ENAMETOOLONG:
            raise StorageError(f"{uri}: {_NAME_IS_TOO_LONG}") from error
        raise _failed(uri, error) from error
    except Exception as error:  # object stores raise what their libraries make of it, not only OSError
        raise _failed(uri, error) from error


def _failed(uri: str, error: Exception) -> StorageError:
    names = {cause.__name__ for cause in type(error).__mro__}  # by name: not all who read have botocore
    reason = first_line(error)
    if names & {"NoCredentialsError", "PartialCredentialsError"}:
        return StorageError(
            f"{uri}: there are no credentials for the object store; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE to a profile of ~/.aws/credentials"
        )
    if names & {"ProfileNotFound", "ConfigParseError", "NoRegionError", "UnknownRegionError"}:
        return StorageError(
            f"{uri}: the settings of the object store are wrong ({reason}); check the variables AWS_..."
        )
    if names & {"ParamValidationError"}:
        return StorageError(f"{uri}: no bucket can have this name; check the URL")
    if reason.startswith("Symlink loop"):
        return StorageError(f"{uri}: is a link that leads to itself; name another place")
    if reason.startswith("Invalid endpoint"):
        return StorageError(f"{uri}: {reason}; set AWS_ENDPOINT_URL to a URL, e.g. http://host:9000")
    number = getattr(error, "errno", None)
    if number == errno.EREMCHG or (number == errno.EINVAL and "region" in reason):
        return StorageError(f"{uri}: its bucket lies in another region ({reason}); set AWS_DEFAULT_REGION to that one")
    if names & {"ConnectionError", "HTTPClientError"}:
        where = "AWS_ENDPOINT_URL" if os.environ.get("AWS_ENDPOINT_URL") else "the network, or set AWS_ENDPOINT_URL"
        return StorageError(
            f"{uri}: the object store does not answer ({reason}); check {where}, then run again", can_pass=True
        )
    return StorageError(
        f"{uri}: the storage failed ({reason}); check that it can be reached, then run the same command again",
        can_pass=True,
    )


def join(uri: str, *parts: str) -> str:
    """Append path segments to a URI.

    Raises:
        StorageError: The URI is empty: what is appended would lie in the root folder.
    """
    if not uri:
        filesystem_of(uri)
    head, rest = (f"{url[1]}://", url[2]) if (url := _URL.fullmatch(uri)) else ("", uri)
    return head + "/".join([rest.rstrip("/"), *(part.strip("/") for part in parts)])


def beside(uri: str, suffix: str) -> str:
    """The URI of a folder beside another one, whose name has this much more at its end.

    Raises:
        StorageError: The folder is the root of its storage.
    """
    filesystem, path = filesystem_of(uri)
    if isinstance(filesystem, LocalFileSystem):
        path = str(Path(path).resolve())
    if not path.strip("/") or not (path.startswith("/") or "/" in path.strip("/")):
        raise StorageError(f"{uri}: is the root of its storage; name a folder in it")
    plain = uri.rstrip("/")
    return (str(filesystem.unstrip_protocol(path)) if plain.endswith((".", "~")) else plain) + suffix


def path_to(uri: str) -> list[str]:
    """Absolute URIs of a place and of all folders above it, the innermost first; links are followed."""
    filesystem, path = filesystem_of(uri)
    if isinstance(filesystem, LocalFileSystem):
        path = os.path.realpath(path)
    path, places = path.rstrip("/"), []
    while path.strip("/"):
        places.append(str(filesystem.unstrip_protocol(path)))
        path = path.rpartition("/")[0]
    return places


def is_inside(uri: str, folder: str) -> bool:
    """Whether a place is this folder, or lies in it."""
    inner, outer = path_to(uri), path_to(folder)
    return inner[len(inner) - len(outer) :] == outer


def is_plain_path(path: str) -> bool:
    """Whether a path from outside names a file inside a folder, on every file system.

    Empty and absolute ones, parts "." and "..", backslashes, colons and characters that cannot be printed do not.
    """
    is_plain = path.isprintable() and "\\" not in path and ":" not in path and len(path) <= _LONGEST_PATH
    return is_plain and not any(part in ("", ".", "..") for part in path.split("/"))


def child(uri: str, path: str) -> str:
    """The URI of a file below a folder, where something from outside names the file.

    Args:
        uri: The folder.
        path: The file's path in it, with "/" between its parts.

    Raises:
        StorageError: The path is no plain one (see `is_plain_path`), a link leads out of the folder, or what lies there
            is no file or folder, e.g. a pipe, on which a reader would wait.
    """
    if not is_plain_path(path):
        raise StorageError(f"{uri}: names a file {path!a:.200}, which is no plain path inside the folder")
    filesystem, folder = filesystem_of(uri)
    if isinstance(filesystem, LocalFileSystem):
        with translating_errors(uri):
            real = Path(folder).resolve()
            target = (real / path).resolve()
            is_special = target.exists() and not target.is_file() and not target.is_dir()
        if not target.is_relative_to(real):
            raise StorageError(f"{uri}: {path} is a link that leads out of the folder; replace it by the file")
        if is_special:
            raise StorageError(f"{uri}: {path} is neither a file nor a folder; remove it")
    return join(uri, path)


def open_uri(uri: str) -> io.BufferedReader:
    """Open a file for reading.

    Raises:
        FileNotFoundError: There is none.
        StorageError: The storage failed, now or in a later call.
    """
    with translating_errors(uri):
        filesystem, path = filesystem_of(uri)
        return io.BufferedReader(_Reading(filesystem.open(path, "rb"), uri), _BLOCK_BYTES)


class _Reading(io.RawIOBase):
    """A readable file whose failures are those of the storage."""

    def __init__(self, file: IO[bytes], uri: str) -> None:
        super().__init__()
        self._file, self._uri = file, uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with translating_errors(self._uri):
            return int(self._file.readinto(buffer))  # type: ignore[attr-defined]  # of every binary file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()
        super().close()


def read(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file, or of a range of it.

    Raises:
        FileNotFoundError: There is none.
        StorageError: The storage failed.
    """
    with translating_errors(uri):
        filesystem, path = filesystem_of(uri)
        return bytes(filesystem.cat_file(path, start=start, end=end))


def write(uri: str, data: bytes) -> None:
    """Write a file, which appears whole or not at all."""
    with create(uri) as file:
        file.write(data)


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    """As `translating_errors`, where a missing or other place is nothing that a caller waits for."""
    with translating_errors(uri):
        try:
            yield
        except _FOR_THE_CALLER as error:
            raise StorageError(
                f"{uri}: cannot be written ({first_line(error)}); check that its bucket or folder exists, "
                "that no file is in its way, and that no other run writes there"
            ) from error


@contextmanager
def create(uri: str) -> Iterator["DigestingFile"]:
    """Write a file piece by piece; it appears whole when the block ends without an error, and else not at all.

    Raises:
        StorageError: The storage failed, or is full.
    """
    filesystem, path = filesystem_of(uri)
    local = isinstance(filesystem, LocalFileSystem)
    with _partial_of(Path(path)) if local else nullcontext() as partial:
        with _writing(uri):
            file = _LocalFile(Path(path), partial) if partial else filesystem.open(path, "wb", autocommit=False)
        try:
            yield DigestingFile(file, uri)
            with _writing(uri):
                file.close()
                file.commit()
        except BaseException:
            with suppress(Exception):  # what is left of the file must not hide the error
                file.discard()
            raise


@contextmanager
def _partial_of(target: Path) -> Iterator[Path]:
    """What a file is called until it is whole: in containers that share a disk, two writers may have the same pid.

    Known before there is such a file, so that none is left wherever in this block a request to stop comes.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}{secrets.randbelow(10**9):09d}{_PARTIAL}")
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


class _LocalFile(io.BufferedWriter):
    """A file that gets its name when it is committed, as fsspec's remote files do."""

    def __init__(self, target: Path, partial: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._target, self._partial = target, partial
        super().__init__(io.FileIO(partial, "w"))

    def commit(self) -> None:
        self._partial.replace(self._target)

    def commit_as_new(self) -> bool:
        """Take the name only if no file has it; whether it was free."""
        try:
            os.link(self._partial, self._target)
        except FileExistsError:
            return False
        except OSError:  # a disk that knows no second names
            with suppress(FileExistsError), open(self._target, "xb") as file:
                file.write(self._partial.read_bytes())
                return True
            return False
        return True

    def discard(self) -> None:
        with suppress(OSError):  # the disk is full
            self.close()


class DigestingFile(io.RawIOBase):
    """A writable binary file that counts and hashes what passes through it."""

    def __init__(self, file: IO[bytes], uri: str) -> None:
        super().__init__()
        self._file, self._uri = file, uri
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far, as hex."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with _writing(self._uri):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)


def require_writable(uri: str) -> None:
    """Refuse a folder that cannot be written to, by trying: before the work whose result shall go there.

    What is written for this is gone again, and a folder that is not there yet is not made.

    Raises:
        StorageError: Something is in its way, nothing may be written there, or the storage failed or is full.
    """
    filesystem, path = filesystem_of(uri)
    if not isinstance(filesystem, LocalFileSystem):
        trial = join(uri, _TRIAL_NAME)
        write(trial, bytes(_TRIAL_BYTES))
        remove([trial])
        return
    folder = next(place for place in (Path(path), *Path(path).parents) if os.path.lexists(place))
    if not folder.is_dir():
        what = "is a link that leads nowhere" if folder.is_symlink() and not folder.exists() else "is no folder"
        raise StorageError(f"{uri}: cannot be written, {folder} {what}; name another place")
    if any(len(os.fsencode(name)) > _LONGEST_NAME for name in Path(path).relative_to(folder).parts):
        raise StorageError(f"{uri}: {_NAME_IS_TOO_LONG}")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TRIAL_BYTES))
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(f"{uri}: {_DISK_IS_FULL}") from error
        what = "is on a disk that can only be read" if error.errno == errno.EROFS else "may not be written to"
        raise StorageError(f"{uri}: cannot be written, {folder} {what}; name another place") from error


def absolute(uri: str) -> str:
    """The same place, wherever the process stands."""
    filesystem, path = filesystem_of(uri)
    return str(filesystem.unstrip_protocol(path))


def real(uri: str) -> str:
    """The same for all names of a place, by links, ".." or a slash at the end."""
    filesystem, path = filesystem_of(uri)
    local = isinstance(filesystem, LocalFileSystem)
    return str(Path(path).resolve()) if local else str(filesystem.unstrip_protocol(path)).rstrip("/")


def is_local(uri: str) -> bool:
    """Whether a URI is a path on this machine."""
    return isinstance(filesystem_of(uri)[0], LocalFileSystem)


def exists(uri: str) -> bool:
    """Whether a file or folder is at `uri`."""
    with translating_errors(uri):
        filesystem, path = filesystem_of(uri)
        return bool(filesystem.exists(path))


def size(uri: str) -> int:
    """Size of a file in bytes."""
    with translating_errors(uri):
        filesystem, path = filesystem_of(uri)
        return int(filesystem.size(path))


def tag(uri: str) -> str:
    """What an object store says to tell a file's content from other content; empty on other file systems."""
    with translating_errors(uri):
        filesystem, path = filesystem_of(uri)
        info = filesystem.info(path)
    return f"{_TAG}{info['ETag'].strip(chr(34))}-{info['size']}" if "ETag" in info else ""


def is_tag(digest: str) -> bool:
    """Whether a digest is an object store's tag, and no SHA-256."""
    return digest.startswith(_TAG)


def digest(uri: str) -> str:
    """What tells a file's content from other content: an object store's tag, which costs no reading, else SHA-256."""
    return tag(uri) or sha256_of(uri)


def is_folder(uri: str) -> bool:
    """Whether `uri` names a folder (on an object store: whether files lie below it)."""
    with translating_errors(uri):
        filesystem, path = filesystem_of(uri)
        return bool(filesystem.isdir(path))


def glob(pattern: str) -> list[str]:
    """Sorted URIs of the files and folders that match a pattern, or of the one that has this very name.

    The user's own words are the pattern, not the current folder.
    """
    with translating_errors(pattern):
        filesystem, path = filesystem_of(pattern)
        if filesystem.exists(path):
            paths = [path]
        elif isinstance(filesystem, LocalFileSystem):
            home = local_glob.escape(str(Path.home()))
            words = path if _URL.fullmatch(pattern) else home + pattern[1:] if pattern.startswith("~/") else pattern
            found = local_glob.glob(words, recursive=True)  # noqa: PTH207  # that of Path matches hidden files
            paths = [_local_path(name) for name in found if not name.endswith("/")]  # "a/**" names a/ itself, too
        else:
            paths = filesystem.glob(path)
        return [filesystem.unstrip_protocol(p) for p in sorted(paths)]


def kinds_in(uri: str) -> dict[str, bool]:
    """The names directly in a folder, sorted, and whether each is a folder; none where there is no such folder."""
    with translating_errors(uri), suppress(FileNotFoundError, NotADirectoryError):
        filesystem, path = filesystem_of(uri)
        found = {
            str(entry["name"]).rstrip("/").rpartition("/")[2]: entry["type"]
            for entry in filesystem.ls(path, detail=True)
            if str(entry["name"]).rstrip("/") != path.rstrip("/")  # an empty folder of an object store lists itself
        }
        return {name: found[name] == "directory" for name in sorted(found)}
    return {}


def names_in(uri: str) -> list[str]:
    """Sorted names of the files and folders directly in a folder; none where there is no such folder."""
    with suppress(FileNotFoundError), translating_errors(uri):
        filesystem, path = filesystem_of(uri)
        inside = {str(name).rstrip("/") for name in filesystem.ls(path, detail=False)} - {path.rstrip("/")}
        return sorted(name.rpartition("/")[2] for name in inside)  # an empty folder of an object store lists itself
    return []


def remove_empty_folder(uri: str) -> None:
    """Delete a folder that holds nothing; on an object store there is none."""
    if is_local(uri):
        with suppress(OSError):  # it holds something, or is somebody else's
            Path(filesystem_of(uri)[1]).rmdir()


def remove(uris: list[str]) -> None:
    """Delete files that are there; a folder stays."""
    for uri in uris:
        with translating_errors(uri), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            filesystem, path = filesystem_of(uri)
            filesystem.rm_file(path)


def remove_folder(uri: str) -> None:
    """Delete a folder that is there, with all that lies below it."""
    with translating_errors(uri), suppress(FileNotFoundError):
        filesystem, path = filesystem_of(uri)
        filesystem.rm(path, recursive=True)


def is_partial(name: str) -> bool:
    """Whether a file's name is that of one which a writer of ours has not finished."""
    return _LEFTOVER.fullmatch(name) is not None


def remove_partial(uri: str) -> None:
    """Delete what killed writers of ours have left below a folder; on an object store nothing of it shows."""
    if is_local(uri):
        with translating_errors(uri):
            for file in Path(filesystem_of(uri)[1]).rglob(f".*{_PARTIAL}"):
                if is_partial(file.name) and file.is_file() and not file.is_symlink():
                    file.unlink(missing_ok=True)


def files_below(uri: str) -> list[str]:
    """URIs of all files below a folder."""
    with translating_errors(uri):
        filesystem, path = filesystem_of(uri)
        found = filesystem.find(path, detail=True)
        return [filesystem.unstrip_protocol(name) for name, info in found.items() if info["type"] == "file"]


def copy(source_uri: str, target_uri: str) -> None:
    """Copy one file between any two URLs: on the server where both lie on one object store, by a second name on a disk.

    A second name costs nothing, and is safe since files are never changed in their place.
    """
    source_fs, source_path = filesystem_of(source_uri)
    target_fs, target_path = filesystem_of(target_uri)
    if source_fs == target_fs:
        if not isinstance(source_fs, LocalFileSystem):
            with translating_errors(source_uri):
                source_fs.cp_file(source_path, target_path)
            return
        with suppress(OSError):  # another disk, or one that knows no second names
            _link(Path(source_path), Path(target_path))
            return
    with create(target_uri) as target:
        for block in blocks(source_uri):
            target.write(block)


def claim(uri: str, data: bytes) -> bool:
    """Write a file that is not there yet, which of several writers only one can.

    Args:
        uri: The file.
        data: What nobody else writes.

    Returns:
        Whether it is there now, and of this writer.

    Raises:
        StorageError: The storage failed, or is full.
    """
    filesystem, path = filesystem_of(uri)
    with _writing(uri):
        if isinstance(filesystem, LocalFileSystem):
            return _claim_local(Path(path), data)
        try:
            filesystem.pipe_file(path, data, mode="create")
        except OSError as error:  # some call it so, some tell the server's answer; a lost answer may have been a yes
            refused = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "") in _NOT_NEW
            if not refused and not isinstance(error, FileExistsError):
                raise
        time.sleep(_CLAIM_SECONDS)
        return bytes(filesystem.cat_file(path)) == data


def _claim_local(target: Path, data: bytes) -> bool:
    with _partial_of(target) as partial:
        file = _LocalFile(target, partial)
        try:
            file.write(data)
            file.close()
            return file.commit_as_new()
        finally:
            file.discard()


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _partial_of(target) as partial:
        os.link(source.resolve(), partial)
        partial.replace(target)


def fetch(uri: str, target: Path) -> None:
    """Bring a file to this machine.

    Raises:
        OSError: There is none, or the target cannot be written.
        StorageError: The storage failed.
    """
    filesystem, path = filesystem_of(uri)
    try:
        with translating_errors(uri):
            filesystem.get_file(path, str(target))
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            raise error.__cause__ from None
        raise


def blocks(uri: str) -> Iterator[bytes]:
    """A file's bytes in blocks of one MiB."""
    with open_uri(uri) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def sha256_of(uri: str) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    for block in blocks(uri):
        digest.update(block)
    return digest.hexdigest()
