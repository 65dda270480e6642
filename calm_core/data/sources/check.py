"""A quick look at the sources before any work: can they be read, and do their first records hold text?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from calm_core.config import DataConfig
from calm_core.data.sources.arrow_messages import Bounded
from calm_core.data.sources.documents import ENDLESS, documents_in
from calm_core.data.sources.files import files_by_source, real_name
from calm_core.data.sources.formats import ARROW_SUFFIX, Document, Range, Reason, why_no_column
from calm_core.errors import SourceError
from calm_core.shown import visible
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME
from calm_core.store.facts import SourceFile

_SOURCES_AT_A_TIME = 16
_MOST_SOURCES, _MOST_FILES, _MOST_RECORDS = 64, 3, 100
_COLUMNS = (".parquet", ARROW_SUFFIX)
_MOST_BYTES = 4 << 20  # of a file
_MOST_BAD = 0.5  # of the records of a file


def check_sources(data: DataConfig) -> None:
    """Find the sources, and look at the first records of each one's first files.

    What is read is bounded, however large the sources are: seconds. Most of the first records may be unusable before a
    source is refused: how many there have to be is for `max_reject_fraction` to say, once all have been read.

    Raises:
        SourceError: A source is missing, cannot be read, or is of another form than the settings say; or all sources
            are so short that all was read, and no record can be used.
        StorageError: The place of a source cannot be used, or does not answer.
    """
    sources = list(files_by_source(data).values())
    with ThreadPoolExecutor(_SOURCES_AT_A_TIME) as pool:
        looks = list(pool.map(lambda files: _look(files, data), sources[:_MOST_SOURCES]))
    has_more = len(sources) > _MOST_SOURCES
    if not (data.extends or has_more) and all(look.is_all and not look.usable for look in looks):
        raise SourceError(
            f"{_told(looks[0].rejected, data)}; there is nothing else in the sources: name files with text"
        )


class _Look(NamedTuple):
    """What the first records of a source are.

    Attributes:
        usable: Whether one of them can be used.
        rejected: The first one that cannot; one that stands for a file without records, if there is no other.
        is_all: Whether there are no more records.
    """

    usable: bool
    rejected: Document
    is_all: bool


def _look(files: list[str], config: DataConfig) -> _Look:
    """Look at the first records of a source's first files, up to a file with a usable one.

    Raises:
        SourceError: Most records of a file say that it is of another form.
    """
    rejected: Document | None = None
    is_all = len(files) <= _MOST_FILES
    for uri in files[:_MOST_FILES]:
        documents, is_whole = _first_documents(uri, config)
        bad = [document for document in documents if document.reason in _ADVICE]
        if len(bad) > max(_MOST_BAD, config.max_reject_fraction) * len(documents):
            if artifact := _artifact_around(uri):
                raise SourceError(
                    f"{uri}: is a file of the artifact {artifact}, which --dataset takes; it holds no text"
                )
            raise SourceError(_told(bad[0], config) + _advice(bad[0]))
        is_all = is_all and is_whole
        nothing = Document(visible(uri), reason="empty", detail="no records")
        rejected = rejected or next((document for document in documents if document.reason), nothing)
        if any(not document.reason for document in documents):
            return _Look(True, rejected, is_all)
    return _Look(False, rejected or Document("", reason="empty"), is_all)


_WORDS: dict[Reason, str] = {
    "missing_field": "has no field {field}",
    "not_text": "its field {field} holds no text",
    "not_utf8": "is no UTF-8",
    "broken_json": "is no JSON object",
    "empty_file": "is empty",
}
_ADVICE: dict[Reason, str] = {
    "missing_field": "name the field that holds the text with data.text_field",
    "not_text": "name a field that holds text with data.text_field",
    "not_utf8": "save it as UTF-8, e.g. with iconv",
    "broken_json": "mend it, or leave it out of data.sources",
}
"""What to do about a source of another form; other reasons are of single records, or wanted (damaged_files=reject)."""


def _told(document: Document, config: DataConfig) -> str:
    reason = document.reason or "empty"
    detail = f" ({document.detail})" if document.detail else ""
    return f"{document.origin}: {_WORDS.get(reason, reason).format(field=config.text_field)}{detail}"


def _advice(document: Document) -> str:
    """What to do, where the detail does not say it."""
    return "" if "write" in document.detail or not document.reason else f"; {_ADVICE[document.reason]}"


def _artifact_around(uri: str) -> str:
    """The artifact that a file belongs to, if any."""
    folders = [uri.rsplit("/", levels)[0] for levels in (1, 2)]
    return next((folder for folder in folders if storage.exists(storage.join(folder, MANIFEST_NAME))), "")


def _first_documents(uri: str, config: DataConfig) -> tuple[list[Document], bool]:
    """Some documents from the beginning of a file, and whether they are all; one stands for the rows of a table."""
    found: list[Document] = []
    real_name(uri)  # refuses a pipe, whose opening would wait
    try:
        with storage.open_uri(uri) as file:
            source = SourceFile(uri=uri, size=storage.size(uri), digest="")
            read = _read_schema if uri.endswith(_COLUMNS) else None
            for document in documents_in(file, source, Range(0, ENDLESS), config, read):
                if len(found) == _MOST_RECORDS or (found and file.tell() > _MOST_BYTES):
                    return found, False
                found.append(document)
    except FileNotFoundError:
        raise SourceError(f"{uri}: is missing; restore it, or leave it out of data.sources") from None
    return found, True


def _read_schema(file: IO[bytes], span: Range, uri: str, config: DataConfig) -> Iterator[Document]:
    """One document that stands for all rows of a table, by its schema; none of a table without rows."""
    if uri.endswith(ARROW_SUFFIX):
        schema, rows = pa.ipc.open_stream(Bounded(file)).schema, 1
    else:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    if rows:
        reason, detail = why_no_column(schema, config) or (None, "")
        yield Document(f"{uri}, row 0", reason=reason, detail=detail)
