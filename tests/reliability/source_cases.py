"""The campaign `sources`: files and folders of text whose truth is known, made odd, damaged or enormous.

Each case is found, cut into partitions, scanned and read. Documents in = documents out + rejects, each text comes back
as it was written, in order; or one line refuses.
"""

import gzip
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO, StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calm_core.config import DataConfig, parse_section
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.files import find_files
from calm_core.data.sources.formats import Document
from calm_core.data.sources.partitions import partition_files
from tests.reliability.campaign import Case, Lie

LIMIT = 5000  # max_document_bytes

Outcome = str | None
"""What a document must become: its text, or None for a reject."""


@dataclass
class Made:
    """Files on disk, and what must come of them.

    Attributes:
        name: What is odd about them.
        source: What `data.sources` names.
        expected: The outcome of each document in order; None where the damage decides.
        refused: Whether they must be refused.
        settings: More settings.
        check: Of what is read in place of `expected`.
    """

    name: str
    source: str
    expected: list[Outcome] | None = None
    refused: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    check: Callable[[list[Document]], None] = lambda documents: None


def source_cases(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Endless cases, each in a folder of its own that goes when it has been tried."""
    for number in count():
        place = folder / f"case-{number}"
        place.mkdir()
        made = rng.choice(KINDS)(place, rng)
        made.settings.setdefault("partitions", rng.randrange(1, 5))
        made.settings.setdefault("damaged_files", rng.choice(["fail", "reject"]))
        yield Case(f"{number}: {made.name}", partial(_try, made, place), made.refused)
        shutil.rmtree(place)


def _try(made: Made, place: Path) -> None:
    settings = {"sources": [made.source], "max_document_bytes": LIMIT, **made.settings}
    config = parse_section(DataConfig, settings)
    with tempfile.TemporaryDirectory(dir=place, prefix=".plan-") as plan, redirect_stdout(StringIO()):
        parts = partition_files(find_files(config), config.partitions, plan)
        documents = [document for part in parts for document in read_documents(part, config)]
        facts = [scan_partition(part, config, f"{plan}/scan-{part.index}").facts for part in parts]
    texts, rejects = [d.text for d in documents if not d.reason], sum(bool(d.reason) for d in documents)
    if [fact.documents for fact in facts] and sum(fact.documents for fact in facts) != len(texts):
        raise Lie(f"{len(texts)} texts are read, {sum(fact.documents for fact in facts)} scanned")
    if sum(sum(fact.rejected.values()) for fact in facts) != rejects:
        raise Lie(f"{rejects} rejects are read, {sum(sum(fact.rejected.values()) for fact in facts)} counted")
    if sum(fact.text_bytes for fact in facts) != sum(len(text.encode()) for text in texts):
        raise Lie("the bytes of the texts are miscounted")
    for example in (example for fact in facts for example in fact.reject_examples):
        if not example.isprintable():
            raise Lie(f"a reject is told with control characters: {example!r}")
    outcomes = [None if d.reason else d.text for d in documents]
    if made.expected is not None and outcomes != made.expected:
        at = next((i for i, (a, b) in enumerate(zip(outcomes, made.expected, strict=False)) if a != b), None)
        raise Lie(
            f"{len(outcomes)} documents, not {len(made.expected)}; first difference at {at}: {outcomes[:3]!r:.200}"
        )
    made.check(documents)


# Texts and lines

PARTS = [
    "a",
    "word ",
    "é",
    "日本語",
    "ภาษาไทย",
    "🙂",
    "\n",
    "\r\n",
    "\t",
    "\x00",
    "\x1b[2J",
    "\ufeff",
    "\u2028",
    "\\",
    '"',
    "</s>",
    " ",
]


def _text(rng: random.Random) -> str:
    text = "".join(rng.choices(PARTS, k=rng.choice([1, 3, 10, 60])))
    return text if text.strip() else f"x{text}"


def _texts(rng: random.Random) -> list[str]:
    return [f"{_text(rng)}{i}" for i in range(rng.choice([1, 2, 5, 40]))]


GOOD_LINES: list[Callable[[str], str]] = [
    lambda text: json.dumps({"text": text}),
    lambda text: json.dumps({"text": text}, ensure_ascii=False),
    lambda text: " " + json.dumps({"id": 3, "text": text, "more": {"text": "inner"}}, indent=None) + "\t",
    lambda text: '{"n": NaN, "m": -Infinity, "text": ' + json.dumps(text) + "}",
    lambda text: '{"n": 1e999, "big": ' + "9" * 300 + ', "text": ' + json.dumps(text) + "}",
    lambda text: '{"deep": ' + "[" * 50 + "]" * 50 + ', "text": ' + json.dumps(text) + "}",
    lambda text: '{"te\\u0078t": ' + json.dumps(text) + "}",
    lambda text: json.dumps({"text": text, "spans": [{"text": "one"}, {"text": "two"}]}),
]
BAD_LINES: list[bytes] = [
    b'{"text": "caf\xe9"}', b'{"text": "\xed\xa0\x80"}', b'\xff\xfe{\x00"\x00', b'{"text": "raw \x00"}',
    b'{"text": "cut',
    b"words", b"[" * 3000, b"[" * 100_000, b'["text"]', b"3", b"null", b'{"Text": "case"}', b'{"text": ["a"]}',
    b'{"text": 3}', b'{"text": null}', b'{"text": ""}', b'{"text": " \\n"}', b'{"text": "\\ud800"}', b'{"text": {}}',
    b'{"text": "' + b"x" * (LIMIT + 1) + b'"}', b'{"text": "one", "text": "two"}', b'{"text": "twice", "text": 2}',
    b'{"text": ' + b"9" * 6000 + b"}", b'{"text": "two"}{"text": "objects"}', b"{'text': 'quotes'}", b'{"text": tru}',
    b'\xef\xbb\xbf\xef\xbb\xbf{"text": "a mark in the middle"}', b'[{"text": "an array"}, {"text": "of two"}]',
    b'{"a":' * 5000,
]  # fmt: skip


def _lines(rng: random.Random, bad: float = 0.3) -> tuple[bytes, list[Outcome]]:
    lines, expected = [], []
    for text in _texts(rng):
        if rng.random() < bad:
            lines.append(rng.choice(BAD_LINES))
            expected.append(None)
        lines.append(rng.choice(GOOD_LINES)(text).encode())
        expected.append(text)
    end = rng.choice([b"\n", b"\r\n", b"\n\n", b"\n \t\r\n"])
    return end.join(lines) + rng.choice([b"", end]), expected


# Packing


def _cuts(data: bytes, rng: random.Random) -> list[bytes]:
    places = sorted(rng.choices(range(len(data) + 1), k=rng.choice([0, 1, 4])))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def _gz(data: bytes, rng: random.Random) -> bytes:
    packed = b"".join(gzip.compress(part, rng.randrange(10)) for part in _cuts(data, rng))
    return packed + b"\0" * rng.choice([0, 0, 1, 512, 10_000])


def _zst(data: bytes, rng: random.Random) -> bytes:
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    frames = [pa.Codec("zstd", rng.choice([1, 9])).compress(part, asbytes=True) for part in _cuts(data, rng)]
    return b"".join(part for frame in frames for part in ([skipped, frame] if rng.random() < 0.3 else [frame]))


PACK: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "jsonl": lambda data, rng: data, "jsonl.gz": _gz, "jsonl.zst": _zst,
}  # fmt: skip


def _parquet(outcomes: list[Outcome], rng: random.Random, **options: Any) -> bytes:
    column = pa.array(outcomes, rng.choice([pa.string(), pa.large_string(), pa.string_view()]))
    if is_dictionary := rng.random() < 0.3:
        column = column.cast(pa.string()).dictionary_encode()
    table = {"id": list(range(len(outcomes))), "text": column, "extra": [{"text": "inner"}] * len(outcomes)}
    table = {name: table[name] for name in rng.sample([*table], len(table))}
    encodings = TEXT_ENCODINGS[:1] if is_dictionary else TEXT_ENCODINGS  # Arrow reads no others into a dictionary
    if options or (chosen := rng.random()) < 0.5:
        chosen_options: dict[str, Any] = {}
    elif chosen < 0.75:
        chosen_options = {"use_dictionary": False, "column_encoding": {"text": rng.choice(encodings)}}
    else:
        chosen_options = {"store_schema": False, "data_page_size": 64, "write_page_index": True}
    file = BytesIO()
    pq.write_table(
        pa.table(table),
        file,
        row_group_size=rng.choice([1, 3, 1000]),
        compression=rng.choice(["none", "snappy", "zstd", "gzip", "lz4"]),
        data_page_version=rng.choice(["1.0", "2.0"]),
        write_page_checksum=True,
        **chosen_options | options,
    )
    return file.getvalue()


TEXT_ENCODINGS = ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]


def _some_missing(rng: random.Random) -> list[Outcome]:
    return [text if rng.random() < 0.8 else None for text in _texts(rng)]


def _save_like_datasets(folder: Path, outcomes: list[Outcome], rng: random.Random, **options: Any) -> dict[str, Any]:
    folder.mkdir(parents=True)
    table = pa.table({"text": pa.array(outcomes, rng.choice([pa.string(), pa.large_string()]))})
    with (
        pa.OSFile(str(folder / "data-0.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out,
    ):
        out.write_table(table, max_chunksize=rng.choice([1, 7, 1000]))
    state = {"_data_files": [{"filename": "data-0.arrow"}], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    return state


def _any_file(rng: random.Random) -> tuple[str, bytes, list[Outcome]]:
    """Suffix, content and outcomes."""
    suffix = rng.choice([*PACK, "parquet", "txt"])
    if suffix == "parquet":
        outcomes = _some_missing(rng)
        return suffix, _parquet(outcomes, rng), outcomes
    if suffix == "txt":
        text = f"{_text(rng)}."
        mark = b"\xef\xbb\xbf" if rng.random() < 0.2 else b""
        text = text.removeprefix("\ufeff")
        return suffix, mark + text.encode(), [text]
    data, expected = _lines(rng)
    return suffix, PACK[suffix](data, rng), expected


# Kinds of cases

NAMES = ["a", "a b", "ä日", "50%41", "x#y", "q?z", "a::b", "[x]", "a+b", "~t",
         "$HOME", "{{a}}", "'q'", "-x", "C:", "A.JSONL",
         "e\u0301", "line\nbreak", "esc\x1b[2J", "tab\t", "back\\slash", "*", "x" * 200, "\u202eright"]  # fmt: skip


def _of_any_name(place: Path, rng: random.Random) -> Made:
    suffix, data, expected = _any_file(rng)
    name = rng.choice(NAMES)
    (place / f"{name}.{suffix}").write_bytes(data)
    source = f"{place}/{name}.{suffix}" if rng.random() < 0.5 else f"{place}/*.{suffix}"
    return Made(f"{suffix} named {name[:20]!r}", source, expected)


def _several(place: Path, rng: random.Random) -> Made:
    """Among names that are skipped, and files that two names lead to."""
    expected: list[Outcome] = []
    for i in range(rng.randrange(1, 5)):
        suffix, data, outcomes = _any_file(rng)
        (place / f"{i}.{suffix}").write_bytes(data)
        expected += outcomes
        if rng.random() < 0.2:
            (place / f"link-{i}.{suffix}").symlink_to(place / f"{i}.{suffix}")
    for name in rng.sample(
        [".DS_Store", "._0.jsonl", "_SUCCESS", ".ipynb_checkpoints/0.txt", "_temporary/1.parquet"], 3
    ):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"\0hidden")
    return Made("several files, hidden ones, links", f"{place}/*", expected)


def _spelled_hidden(place: Path, rng: random.Random) -> Made:
    data, expected = _lines(rng)
    name = rng.choice(["._a.jsonl", "_a.jsonl", ".cache/a.jsonl", "_x/.y/a.jsonl"])
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)
    pattern = rng.choice([name, name.replace("a.jsonl", "*.jsonl")])
    return Made(f"hidden but spelled: {pattern}", f"{place}/{pattern}", expected)


def _only_hidden(place: Path, rng: random.Random) -> Made:
    (place / rng.choice([".a.jsonl", "_a.jsonl", "._a.jsonl"])).write_text('{"text": "hidden"}\n')
    return Made("only hidden files", f"{place}/*", refused=True)


def _folder_of_parts(place: Path, rng: random.Random) -> Made:
    suffix = rng.choice(["parquet", "jsonl", "jsonl.gz", "jsonl.zst"])
    expected: list[Outcome] = []
    for name in ["part-0", "part-1", "year=2020/part-0"][: rng.randrange(1, 4)]:
        outcomes = [*_texts(rng)]
        data = "\n".join(json.dumps({"text": text}) for text in outcomes).encode()
        path = place / f"data.{suffix}" / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_parquet(outcomes, rng) if suffix == "parquet" else PACK[suffix](data, rng))
        expected += outcomes
    for name in rng.sample(["_SUCCESS", f"_metadata.{suffix}", f".part-0.{suffix}.crc", f"_temporary/x.{suffix}"], 2):
        path = place / f"data.{suffix}" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"none")
    source = rng.choice([f"*.{suffix}", f"data.{suffix}", "*", f"data.{suffix}/"])
    if stranger := rng.random() < 0.2:
        (place / f"data.{suffix}" / "notes.csv").write_text("a,b\n")
    return Made(f"folder of {suffix} parts", f"{place}/{source}", None if stranger else expected, refused=stranger)


def _matched_folder(place: Path, rng: random.Random) -> Made:
    (place / "a.jsonl").write_text('{"text": "one"}\n')
    (place / "sub" / "deep").mkdir(parents=True)
    (place / "sub" / "deep" / "b.jsonl").write_text('{"text": "two"}\n')
    pattern = rng.choice(["*", "**", "**/*", "*/*", "sub", "**/*.jsonl"])
    goes_in = "**" in pattern
    return Made(
        f"a folder that {pattern} matches", f"{place}/{pattern}", ["one", "two"] if goes_in else None, not goes_in
    )


def _suffix_lies(place: Path, rng: random.Random) -> Made:
    suffix, data, _ = _any_file(rng)
    other = rng.choice([s for s in [*PACK, "parquet"] if s != suffix])
    (place / f"a.{other}").write_bytes(data)
    return Made(f"{suffix} named {other}", f"{place}/a.{other}")


def _unknown_suffix(place: Path, rng: random.Random) -> Made:
    name = rng.choice(["a.csv", "a.JSONL", "a.json", "a", "a.jsonl.bz2", "a.parquet.gz", "a.arrow", "jsonl", "a.txt~"])
    (place / name).write_text('{"text": "one"}\n')
    (place / "b.jsonl").write_text('{"text": "two"}\n')
    return Made(f"unknown: {name}", f"{place}/{rng.choice([name, '*'])}", refused=True)


def _no_file(place: Path, rng: random.Random) -> Made:
    kind = rng.choice(["empty", "missing", "pipe", "broken link", "empty folder", "link to itself"])
    path = place / "a.jsonl"
    if kind == "empty":
        path.write_bytes(b"")
        return Made("an empty file", str(path), [None])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind.endswith("link"):
        path.symlink_to(place / "gone")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "empty folder":
        path.mkdir()
    return Made(kind, rng.choice([str(path), f"{place}/*.jsonl"]), refused=True)


def _other_encoding(place: Path, rng: random.Random) -> Made:
    text = "".join(rng.choices(["plain ascii\n", "words\n\n", "日本\n"], k=rng.choice([3, 3000])))
    encoding = rng.choice(["utf-16", "utf-32", "utf-16-le"])
    mark = "\ufeff" if encoding.endswith("le") else ""
    (place / "a.txt").write_bytes((mark + text).encode(encoding))

    def check(documents: list[Document]) -> None:
        if any(not document.reason for document in documents):
            raise Lie(f"{encoding} is taken for UTF-8")

    return Made(f"txt in {encoding}", f"{place}/a.txt", check=check, settings={"txt_document_bytes": 2000})


def _large_txt(place: Path, rng: random.Random) -> Made:
    text = "".join(
        rng.choices(["word ", "longer words", "日本", "\n", "\r\n", "\n\n", "\r"], k=rng.choice([300, 3000]))
    )
    text = f"start{text}end"
    (place / "a.txt").write_text(text, newline="")

    def check(documents: list[Document]) -> None:
        rest = text
        for document in documents:
            before, found, rest = rest.partition(document.text)
            if document.reason or not found or before.strip():
                raise Lie(f"lost between the parts: {before[:50]!r} {document.reason}")
        if rest.strip():
            raise Lie(f"lost at the end: {rest[:50]!r}")

    return Made("a large txt", f"{place}/a.txt", check=check, settings={"txt_document_bytes": 200})


def _saved_by_datasets(place: Path, rng: random.Random) -> Made:
    outcomes = _some_missing(rng)
    _save_like_datasets(place / "saved", outcomes, rng)
    (place / "saved" / "cache-0.arrow").write_bytes(b"")
    return Made("saved by datasets", rng.choice([f"{place}/saved", f"{place}/*"]), outcomes)


FILENAMES: list[Any] = [
    "../victim.txt", "../../outside/victim.txt", "/etc/hostname", "a\\b.arrow", "a\0.arrow", "", ".", "..",
    "sub/../x.arrow", 3, None, [], {}, "state.json", "gone.arrow", "data-0.arrow/", "./data-0.arrow", "file:///etc/x.arrow",
    "x" * 5000 + ".arrow",    "esc\x1b.arrow", "\ud800.arrow",
]  # fmt: skip


def _wrong_state(place: Path, rng: random.Random) -> Made:
    state = _save_like_datasets(place / "saved", ["one", "two"], rng)
    name = rng.choice(FILENAMES)
    whole: list[Any] = [
        state | {"_data_files": [{"filename": name}]},
        state | {"_data_files": [{"filename": "data-0.arrow"}, {"filename": name}]},
        state | {"_data_files": [{"filename": "data-0.arrow"}] * 2},
        state | {"_data_files": rng.choice([None, 3, "x", {}, []])},
        state | {"_data_files": [rng.choice([None, 3, "data-0.arrow", [], {}])]}, [], 3, None, "text", {},
        state | {"_indices_data_files": [{"filename": "i.arrow"}]},
    ]  # fmt: skip
    content = json.dumps(rng.choice(whole)).encode()
    content = rng.choice([content, content, content, content[:-1], b"", b"\xff\xfe", b"[" * 100_000])
    file = rng.choice(["state.json", "state.json", "dataset_dict.json"])
    if file == "dataset_dict.json":
        splits = rng.choice([["a", "b"], ["../x"], [3], None, 3, {}, "ab", ["\x1b"]])
        content = rng.choice([content, json.dumps({"splits": splits}).encode()])
    (place / "saved" / file).write_bytes(content)
    return Made(f"wrong {file}: {content[:60]!r}", f"{place}/saved", refused=True)


def _damaged(place: Path, rng: random.Random) -> Made:
    """Bytes flipped, cut off, added or swapped in a file with checksums; what is accepted is whole."""
    suffix = rng.choice(["parquet", "jsonl.gz", "jsonl.zst"])
    texts: list[Outcome] = [*_texts(rng), *_texts(rng)]
    if suffix == "parquet":
        data = bytearray(_parquet(texts, rng))
    else:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        data = bytearray(_gz(lines, rng) if suffix == "jsonl.gz" else _checked_zst(lines))
    how = rng.choice(["flip", "flips", "cut", "zeros", "twice", "drop"])
    at = rng.randrange(len(data))
    for place_of_flip in [at, *rng.choices(range(len(data)), k=5 if how == "flips" else 0)]:
        if how.startswith("flip"):
            data[place_of_flip] ^= 1 << rng.randrange(8)
    if how == "cut":
        del data[at:]
    elif how == "zeros":
        data[at : at + 9] = bytes(len(data[at : at + 9]))
    elif how == "twice":
        data[at:at] = data[max(at - 9, 0) : at]
    elif how == "drop":
        del data[at : at + 3]
    (place / f"a.{suffix}").write_bytes(data)

    def check(documents: list[Document]) -> None:
        found = [document.text for document in documents if not document.reason]
        whole = len(found) == len(texts) or len(documents) == len(texts)
        if data and mode == "fail" and not (whole and set(found) <= {*texts}):
            raise Lie(f"{len(found)} of {len(texts)} texts, {len(documents)} documents of a damaged file, and no word")
        if suffix == "parquet" and not set(found) <= {*texts}:
            raise Lie("a text that nobody wrote")

    mode = rng.choice(["fail", "reject"])
    return Made(f"{how} in {suffix}", f"{place}/a.{suffix}", check=check, settings={"damaged_files": mode})


def _checked_zst(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "--check", "-c"], input=data, capture_output=True, check=True).stdout


def _flipped_lines(place: Path, rng: random.Random) -> Made:
    """A flip spoils its line, and perhaps the next one; no other."""
    texts = [f"text number {i} of these" for i in range(30)]
    data = bytearray("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (place / "a.jsonl").write_bytes(data)

    def check(documents: list[Document]) -> None:
        if len({*texts} - {document.text for document in documents}) > 2:
            raise Lie("one byte spoils more than two lines")

    return Made("a flip in jsonl", f"{place}/a.jsonl", check=check)


def _bomb_of_rows(place: Path, rng: random.Random) -> Made:
    """Many rows that share one text, which is too large; Arrow would make as many copies."""
    rows, long = rng.choice([3, 100]), "x" * rng.choice([LIMIT + 1, 1_000_000])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1] * rows, pa.int32()), pa.array([long, "short"]))
    encodings = {"use_dictionary": False, "column_encoding": {"text": rng.choice(TEXT_ENCODINGS)}}
    options: dict[str, Any] = rng.choice([{}, encodings] if len(long) < 10**6 else [{}])
    pq.write_table(
        pa.table({"text": column}), place / "a.parquet", compression="zstd", store_schema=rng.random() < 0.5, **options
    )
    return Made(f"{rows} rows of {len(long)} bytes", f"{place}/a.parquet", [None, "short"] * rows)


def _bomb_refused(place: Path, rng: random.Random) -> Made:
    kind = rng.choice(["page", "rows", "arrow", "null rows", "window", "length"])
    path = place / "a.parquet"
    if kind == "page":
        column = pa.array(["y" * 30_000_000])
        pq.write_table(pa.table({"text": column}), path, compression="zstd", use_dictionary=rng.random() < 0.5)
    elif kind == "rows":
        pq.write_table(pa.table({"text": pa.nulls(18_000_000, pa.string())}), path, row_group_size=18_000_000)
    elif kind in ("arrow", "null rows", "length"):
        path = place / "saved"
        _save_like_datasets(path, ["y" * 100_000] * 3, rng, **({"compression": "zstd"} if kind == "arrow" else {}))
        file = path / "data-0.arrow"
        if kind == "null rows":
            table = pa.table({"text": pa.nulls(20_000_000)})
            with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
                stream.write_table(table)
        if kind == "length":  # a message claims to be as long as memory is
            file.write_bytes(
                b"\xff\xff\xff\xff" + (rng.choice([2**31 - 8, 2**30])).to_bytes(4, "little") + file.read_bytes()
            )
    else:
        path = place / "a.jsonl.zst"
        block = b'{"text": "one"}\n'
        window = rng.choice([0x90, 0xA8, 0xF8])  # 2^28, 2^31, 2^41 bytes
        path.write_bytes(b"\x28\xb5\x2f\xfd\0" + bytes([window]) + (1 | len(block) << 3).to_bytes(3, "little") + block)
    settings = {"damaged_files": "fail"} if kind == "length" else {}
    return Made(f"bomb: {kind}", str(path), refused=True, settings=settings)


def _endless_line(place: Path, rng: random.Random) -> Made:
    """Longer than any document's line: it is one reject, the next one is read."""
    line = rng.choice([b"x", b"\0", b'{"text": "', b"[{},"]) * 20_000_000
    suffix = rng.choice(["jsonl", "jsonl.gz"])
    data = line[:20_000_000] + b'\n{"text": "after"}\n'
    (place / f"a.{suffix}").write_bytes(gzip.compress(data, 1) if suffix == "jsonl.gz" else data)
    return Made("an endless line", f"{place}/a.{suffix}", [None, "after"])


KINDS: list[Callable[[Path, random.Random], Made]] = [
    *[_of_any_name, _several, _damaged] * 4,
    *[_folder_of_parts, _saved_by_datasets, _wrong_state, _large_txt, _bomb_of_rows, _flipped_lines] * 3,
    *[_spelled_hidden, _only_hidden, _matched_folder, _suffix_lies, _unknown_suffix, _no_file, _other_encoding] * 2,
    _bomb_refused,
    _endless_line,
]  # fmt: skip
