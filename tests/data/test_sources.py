"""Sources: each document is read once, each bad one is counted under its reason."""

import gc
import gzip
import json
import os
import random
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calm_core.config import DataConfig
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.files import find_files
from calm_core.data.sources.formats import Document
from calm_core.data.sources.partitions import Partition, partition_files
from calm_core.errors import ConfigError, SourceError, StorageError

PLANS = tempfile.TemporaryDirectory()


def config_of(*sources: Path | str, partitions: int = 1, **settings: Any) -> DataConfig:
    return DataConfig(sources=tuple(str(source) for source in sources), partitions=partitions, **settings)


def plan_partitions(config: DataConfig) -> list[Partition]:
    return partition_files(find_files(config), config.partitions, tempfile.mkdtemp(dir=PLANS.name))


def read_all(config: DataConfig) -> list[Document]:
    return [document for partition in plan_partitions(config) for document in read_documents(partition, config)]


def texts_of(config: DataConfig) -> list[str]:
    documents = read_all(config)
    assert [document for document in documents if document.reason] == []
    return [document.text for document in documents]


LIMIT = 200  # max_document_bytes of the bad lines

BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"text": "caf\xe9"}', "not_utf8"),
    (b'{"text": "\xed\xa0\x80"}', "not_utf8"),  # a surrogate in UTF-8's clothes
    (b'\xff\xfe{\x00"\x00', "not_utf8"),  # UTF-16
    (b'{"text": "a raw NUL \x00"}', "broken_json"),
    (b'{"text": "no end', "broken_json"),
    (b'{"text": "two"} {"text": "objects"}', "broken_json"),
    (b"just words", "broken_json"),
    (b"[" * 400 + b"]" * 399, "broken_json"),
    (b'{"text": ' + b"9" * 2000, "broken_json"),
    (b'["text"]', "missing_field"),
    (b"3", "missing_field"),
    (b"null", "missing_field"),
    (b'"text"', "missing_field"),
    (b'{"Text": "wrong case"}', "missing_field"),
    (b'{"text": ["a", "b"]}', "not_text"),
    (b'{"text": 3}', "not_text"),
    (b'{"text": null}', "not_text"),
    (b'{"text": {"text": "nested"}}', "not_text"),
    (b'{"text": ""}', "empty"),
    (b'{"text": " \\n\\t "}', "empty"),
    (b'{"text": "\\ud800 alone"}', "invalid_unicode"),
    (json.dumps({"text": "a" * (LIMIT + 1)}).encode(), "too_large"),
    (json.dumps({"text": "\u00e9" * (LIMIT // 2 + 1)}).encode(), "too_large"),
    (json.dumps({"text": "a" * (300 * LIMIT)}).encode(), "too_large"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_counted_under_its_reason_and_its_neighbours_stay(
    line: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    first = b'{"text": "before"}\n'
    path.write_bytes(first + line + b'\n{"text": "after"}\n')
    before, bad, after = read_all(config_of(path, max_document_bytes=LIMIT))
    assert (before.text, bad.text, after.text) == ("before", "", "after")
    assert bad.reason == reason
    assert bad.origin.endswith("bad.jsonl, line 2")


def test_a_file_of_all_bad_lines_loses_none_however_it_is_cut(tmp_path: Path) -> None:
    lines = [line for line, _ in BAD_LINES for _ in range(3)]
    random.Random(0).shuffle(lines)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    reasons = Counter(document.reason for document in read_all(config_of(path, partitions=5, max_document_bytes=LIMIT)))
    assert reasons == {reason: 3 * count for reason, count in Counter(reason for _, reason in BAD_LINES).items()}


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'{"text": "a" "b"}', ""),
        (b'{"text": "a",', "an object begins there and does not end in its line; write each one on a line"),
        (b'["a",', "a list begins there; write one object a line"),
    ],
)
def test_broken_json_says_what_it_may_be_a_part_of(line: bytes, detail: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line + b"\r\n")
    assert [document.detail for document in read_all(config_of(path))] == [detail]


def test_deep_nesting_is_broken_json_and_no_crash(tmp_path: Path) -> None:
    """100,000 brackets are beyond any recursion limit."""
    path = tmp_path / "deep.jsonl"
    path.write_bytes(b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
    assert [document.reason for document in read_all(config_of(path))] == ["broken_json"]


def test_a_text_of_the_largest_size_is_kept_even_when_json_escapes_it_all(tmp_path: Path) -> None:
    path = tmp_path / "escaped.jsonl"
    path.write_text(json.dumps({"text": "\x01" * LIMIT}))
    assert texts_of(config_of(path, max_document_bytes=LIMIT)) == ["\x01" * LIMIT]


def test_line_ends_blank_lines_and_a_byte_order_mark_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n \t\n{"text": "two\\r\\n"}\r\n\n{"text": "no line end"}')
    assert texts_of(config_of(path)) == ["one", "two\r\n", "no line end"]


def test_a_small_text_beside_large_fields_is_kept(tmp_path: Path) -> None:
    """What else is in a line, a page's HTML or an embedding, is not the document."""
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps({"html": "<p>" * 50_000, "text": "a text", "embedding": [0.25] * 4096}) + "\n")
    assert texts_of(config_of(path, max_document_bytes=LIMIT)) == ["a text"]


def test_the_field_of_the_text_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "named.jsonl"
    path.write_text('{"body": "this", "text": "not this"}\n')
    assert texts_of(config_of(path, text_field="body")) == ["this"]


@pytest.mark.parametrize("partitions", range(1, 10))
def test_every_line_is_read_once_and_in_order_whatever_the_cuts(partitions: int, tmp_path: Path) -> None:
    """Four files of up to 12 lines; lines of 12 to 80 bytes, so that cuts fall on every place of a line."""
    numbers = random.Random(partitions)
    for trial in range(10):
        folder = tmp_path / str(trial)
        folder.mkdir()
        expected = []
        for name in "abcd":
            lines = [f"{trial}{name}{i} " + "é" * numbers.randrange(30) for i in range(numbers.randrange(12))]
            content = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines)
            (folder / f"{name}.jsonl").write_text(content + "\n" * numbers.randrange(2 if lines else 1))
            expected += lines
        documents = read_all(config_of(folder / "*.jsonl", partitions=partitions))
        assert [document.text for document in documents if document.reason != "empty_file"] == expected


def test_a_cut_on_every_byte_of_a_file_owns_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"text":"a"}\n{"text":"b"}\n')
    config = config_of(path, partitions=path.stat().st_size + 3)
    assert len(plan_partitions(config)) == path.stat().st_size + 3  # an empty partition is still one
    assert texts_of(config) == ["a", "b"]


def test_a_partition_survives_json_that_knows_only_floats(tmp_path: Path) -> None:
    """Kubeflow hands a loop's item on as a protobuf Struct, whose numbers are all doubles."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(9)))
    config = config_of(path, partitions=2)
    travelled = json.loads(json.dumps([part.model_dump() for part in plan_partitions(config)]), parse_int=float)
    partitions = [Partition.parse(values) for values in travelled]
    documents = [document.text for partition in partitions for document in read_documents(partition, config)]
    assert documents == [f"text {i}" for i in range(9)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pieces_uri": "plan", "num_bytes": 0}, r"partition\.index: Field required"),
        (
            {"index": "first", "pieces_uri": "plan", "num_bytes": 0},
            r"partition\.index: Input should be a valid integer",
        ),
        ({"index": 0, "pieces_uri": "plan", "num_bytes": 0, "files": []}, r"partition\.files: Extra inputs"),
        ([], r"partition: Input should be a valid dictionary"),
    ],
    ids=["missing", "wrong type", "unknown", "no object"],
)
def test_what_is_no_partition_is_refused_on_one_line(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Partition.parse(values)
    assert "\n" not in str(caught.value)


def test_partitions_are_shares_of_nearly_equal_bytes(tmp_path: Path) -> None:
    """.jsonl files are cut anywhere, so only the rounding of a cut is between the shares."""
    for name, lines in (("a", 5), ("b", 50), ("c", 1)):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a line"}\n' * lines)
    partitions = plan_partitions(config_of(tmp_path / "*.jsonl", partitions=4))
    shares = [sum(p.end - p.start for p in part.pieces()) for part in partitions]
    assert sum(shares) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert max(shares) - min(shares) <= 2


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n')
    assert texts_of(config_of(path, tmp_path / "*.jsonl", f"file://{path}")) == ["one"]


def test_a_small_txt_file_is_one_document_with_its_exact_text(tmp_path: Path) -> None:
    text = "  \u00dcber Zeilen\r\n\n\n und Leerzeilen \n\n"
    path = tmp_path / "small.txt"
    path.write_bytes(text.encode())
    assert texts_of(config_of(path)) == [text]


TXT_SIZE = 64  # txt_document_bytes of the large files


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_large_txt_file_is_cut_at_blank_lines(line_end: str, tmp_path: Path) -> None:
    """At the end of the first one in each block of the asked size."""
    paragraphs = [line_end.join(["word " * 4, f"paragraph {i}", "", ""]) for i in range(40)]
    assert all(TXT_SIZE / 2 < len(paragraph) <= TXT_SIZE for paragraph in paragraphs)
    path = tmp_path / "large.txt"
    path.write_bytes("".join(paragraphs).encode())
    parts = texts_of(config_of(path, txt_document_bytes=TXT_SIZE))
    assert "".join(parts) == "".join(paragraphs)
    assert all(part.endswith(2 * line_end) and len(part) < 2 * TXT_SIZE for part in parts)
    assert len(parts) > 20


@pytest.mark.parametrize("separators", [["\n"], ["\n", "\n\n", "\r\n"], ["\n\n", " "]])
@pytest.mark.parametrize("alphabet", ["ab c", "é 日本", "🙂\ufeff\x00"])
def test_the_parts_of_a_txt_file_join_to_its_text(alphabet: str, separators: list[str], tmp_path: Path) -> None:
    numbers = random.Random(alphabet)
    words = ["".join(numbers.choices(alphabet, k=numbers.randrange(40))) for _ in range(200)]
    text = "start" + "".join(word + numbers.choice(separators) for word in words)
    path = tmp_path / "large.txt"
    path.write_bytes(text.encode())
    parts = texts_of(config_of(path, txt_document_bytes=TXT_SIZE))
    for part in parts:  # only space between them is left out
        before, text = text.split(part, 1)
        assert not before.strip()
    assert not text.strip()
    assert len(parts) > 5  # 200 words of 20 characters are far more than 64 bytes


def test_a_txt_line_longer_than_a_document_is_one_reject_and_the_next_line_is_read(tmp_path: Path) -> None:
    """The limit falls inside a three-byte character; that does not make the text another encoding."""
    path = tmp_path / "long.txt"
    path.write_bytes(("日" * 1000).encode() + b"\nafter\n")
    documents = read_all(config_of(path, max_document_bytes=100))
    assert [(document.text, document.reason) for document in documents] == [("", "too_large"), ("after\n", None)]


@pytest.mark.parametrize("partitions", [2, 3, 7, 40])
def test_the_parts_of_a_txt_file_do_not_depend_on_the_partitions(partitions: int, tmp_path: Path) -> None:
    numbers = random.Random(partitions)
    lines = ["word " * numbers.randrange(30) + numbers.choice(["", "\n", "\r\n\r", "\n\n\n"]) for _ in range(200)]
    path = tmp_path / "large.txt"
    path.write_bytes("\n".join(lines).encode())
    whole = texts_of(config_of(path, txt_document_bytes=TXT_SIZE))
    assert texts_of(config_of(path, txt_document_bytes=TXT_SIZE, partitions=partitions)) == whole


@pytest.mark.parametrize("content", ["x" * 79 + "\n", "x"], ids=["lines", "one endless line"])
def test_a_large_txt_file_is_never_held_in_memory(content: str, tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_text(content * (20_000_000 // len(content)))
    config = config_of(path, max_document_bytes=100_000)
    partitions = plan_partitions(config)
    gc.collect()
    tracemalloc.start()
    for partition in partitions:
        for _ in read_documents(partition, config):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A skipped line is read in blocks of 1 MiB, of which a few copies live at a time; the file has 20 MB.
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("latin.txt", "caf\u00e9".encode("latin-1"), "not_utf8"), ("nothing.txt", b"", "empty_file")],
)
def test_an_unreadable_txt_file_is_counted(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert [document.reason for document in read_all(config_of(tmp_path / name))] == [reason]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("*.txt", r"\*.txt: nothing matches; .* holds 1 \.csv and 1 folder$"),
        ("table.csv", r"table.csv: unknown kind of source; write it as \.jsonl or \.parquet"),
        ("folder/page.html", r"page.html: unknown kind of source; \.jsonl, .*\.parquet, \.txt files are read"),
        ("folder", r"folder: is a folder that holds 1 \.html; .*\.txt files are read"),
    ],
)
def test_a_source_that_cannot_be_read_is_named_on_one_line(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("text\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "page.html").write_text("text\n")
    with pytest.raises(SourceError, match=message) as caught:
        plan_partitions(config_of(tmp_path / source))
    assert "\n" not in str(caught.value)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(StorageError, match=r"nonsense://texts\.jsonl: cannot be used, nothing is known of nonsense://"):
        plan_partitions(config_of("nonsense://texts.jsonl"))


def test_no_sources_is_an_error_that_says_how_to_name_them() -> None:
    with pytest.raises(SourceError, match=r"data.sources is empty; name .*jsonl"):
        plan_partitions(config_of())


@pytest.mark.parametrize("change", ["grow", "remove"])
def test_a_file_that_changes_after_planning_is_named(change: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n')
    config = config_of(path)
    [partition] = plan_partitions(config)
    path.write_text('{"text": "one"}\n{"text": "two"}\n') if change == "grow" else path.unlink()
    with pytest.raises(SourceError, match=r"texts\.jsonl: changed or removed since the run was planned; run again"):
        list(read_documents(partition, config))


def test_a_plan_sees_new_content_of_the_same_size(tmp_path: Path) -> None:
    """Reading checks the size alone; the plan's hash is what makes another partition, and another cache key."""
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n')
    before = plan_partitions(config_of(path))
    path.write_text('{"text": "two"}\n')
    assert plan_partitions(config_of(path)) != before


def zstd(data: bytes) -> bytes:
    file = pa.BufferOutputStream()
    with pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(data)
    return bytes(file.getvalue())


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("zst", zstd)])
def test_a_compressed_file_may_be_several_streams_and_is_never_cut(
    suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """As `cat` or a parallel compressor joins them; a line may go over the end of one."""
    lines = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(3000)).encode()
    cuts = [0, 0, 7, 20_000, len(lines)]
    path = tmp_path / f"texts.jsonl.{suffix}"
    path.write_bytes(b"".join(compress(lines[start:end]) for start, end in pairwise(cuts)))
    config = config_of(path, partitions=3)
    documents = read_all(config)
    assert [document.text for document in documents] == [f"text {i}" for i in range(3000)]
    assert documents[-1].origin.endswith(", line 3,000")
    shares = [part.pieces() for part in plan_partitions(config)]
    assert sorted(map(len, shares)) == [0, 0, 1]


def write_parquet(path: Path, column: pa.Array, rows_per_group: int = 1000, **others: pa.Array) -> Path:
    pq.write_table(pa.table({**others, "text": column}), path, row_group_size=rows_per_group)
    return path


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_a_parquet_column_of_text_is_read_whatever_its_type(kind: pa.DataType, tmp_path: Path) -> None:
    column = pa.array(["one", "two", None, "one", "", "dr\u00e9i"])
    column = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)
    documents = read_all(config_of(write_parquet(tmp_path / "texts.parquet", column, rows_per_group=4)))
    assert [document.text or document.reason for document in documents] == [
        "one", "two", "not_text", "one", "empty", "dr\u00e9i"
    ]  # fmt: skip
    assert [document.origin.rpartition(", ")[2] for document in documents] == [f"row {i}" for i in range(6)]


@pytest.mark.parametrize(
    ("column", "field", "reason"),
    [
        (pa.array([1, 2, 3]), "text", "not_text"),
        (pa.array([["a"], ["b"], ["c"]]), "text", "not_text"),
        (pa.array([b"a", b"b", b"c"]), "text", "not_text"),
        (pa.array([None] * 3), "text", "not_text"),
        (pa.array(["a", "b", "c"]), "body", "missing_field"),
        (pa.StringArray.from_buffers(3, pa.py_buffer(np.arange(4, dtype=np.int32)), pa.py_buffer(b"\xff" * 3)), "text",
         "not_utf8"),
    ],
    ids=["numbers", "lists", "bytes", "nulls", "no such column", "another encoding"],
)  # fmt: skip
def test_every_row_of_an_unusable_parquet_column_is_counted(
    column: pa.Array, field: str, reason: str, tmp_path: Path
) -> None:
    path = write_parquet(tmp_path / "texts.parquet", column, rows_per_group=2)
    assert [document.reason for document in read_all(config_of(path, text_field=field))] == [reason] * 3


def test_row_groups_are_shared_out_over_partitions(tmp_path: Path) -> None:
    """10 of them, whole, by their first byte; random texts are far more bytes than the file's index."""
    numbers = random.Random(0)
    texts = [f"text {i} {numbers.randbytes(300).hex()}" for i in range(100)]
    other = pa.array([numbers.randbytes(300).hex() for _ in range(100)])
    config = config_of(write_parquet(tmp_path / "a.parquet", pa.array(texts), 10, other=other), partitions=4)
    shares = [[document.text for document in read_documents(part, config)] for part in plan_partitions(config)]
    assert [text for share in shares for text in share] == texts
    assert sorted(map(len, shares)) == [10, 30, 30, 30]


def save_like_datasets(folder: Path, files: list[list[str]], **state: Any) -> Path:
    """A folder as Dataset.save_to_disk of Hugging Face's datasets writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(files):05d}.arrow" for i in range(len(files))]
    for name, texts in zip(names, files, strict=True):
        table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string", "_type": "Value"}}}))
    listed = [{"filename": name} for name in names]
    (folder / "state.json").write_text(
        json.dumps({"_data_files": listed, "_fingerprint": "f", "_split": "train", **state})
    )
    return folder


def test_a_folder_that_datasets_has_saved_is_read_like_any_source(tmp_path: Path) -> None:
    """Of its files those that it lists; others are caches."""
    save_like_datasets(tmp_path / "a" / "train", [["one", "two", "three"], [], ["four"]])
    save_like_datasets(tmp_path / "b" / "train", [["five"]])
    (tmp_path / "a" / "train" / "cache-0123.arrow").write_bytes(b"")
    expected = ["one", "two", "three", "four", "five"]
    assert texts_of(config_of(tmp_path / "a" / "train", f"{tmp_path}/b/train/")) == expected
    assert texts_of(config_of(tmp_path / "*" / "train", partitions=3)) == expected


def test_formats_are_mixed_in_the_order_of_the_sources(tmp_path: Path) -> None:
    """A list's order, and within a glob that of the names; a file that two of them name is read once."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}\n'))
    (tmp_path / "c.jsonl.zst").write_bytes(zstd(b'{"text": "c"}\n'))
    write_parquet(tmp_path / "d.parquet", pa.array(["d"]))
    (tmp_path / "e.txt").write_text("e")
    save_like_datasets(tmp_path / "f", [["f"]])
    assert texts_of(config_of(tmp_path / "*")) == [*"abcdef"]
    sources = [tmp_path / name for name in ("f", "d.parquet", "*.jsonl*", "[ad].*", "e.txt")]
    assert texts_of(config_of(*sources, partitions=2)) == [*"fdabce"]


@pytest.mark.parametrize("name", ["TEXTS.JSONL", "texts.json", "texts.txt.gz", "texts.parquet.zst", "texts", "a.arrow"])
def test_a_file_of_another_kind_is_refused_by_name_also_beside_others(name: str, tmp_path: Path) -> None:
    """A glob that takes in too much must not leave it out silently."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=f"{name}: unknown kind of source") as caught:
        find_files(config_of(tmp_path / "*"))
    assert "\n" not in str(caught.value)


def test_several_splits_or_a_selection_that_datasets_has_saved_are_refused_with_a_way_out(tmp_path: Path) -> None:
    save_like_datasets(tmp_path / "all" / "train", [["one"]])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(SourceError, match=r"all: holds several splits; name those to read: .*all/train, .*all/test$"):
        find_files(config_of(tmp_path / "all"))
    save_like_datasets(tmp_path / "some", [["one"]], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(SourceError, match=r"some: holds a selection of rows; call its flatten_indices\(\)"):
        find_files(config_of(tmp_path / "some"))


@pytest.mark.parametrize(
    ("form", "texts", "changed"),
    [
        ("none", ["e\u0301", "\u00e9", "\ufb01x", "\ufb01x"], 0),
        ("NFC", ["\u00e9", "\u00e9", "\ufb01x", "\ufb01x"], 1),
        ("NFKC", ["\u00e9", "\u00e9", "fix", "fix"], 3),
    ],
)
def test_texts_that_normalisation_changes_are_counted(
    form: str, texts: list[str], changed: int, tmp_path: Path
) -> None:
    """In every format."""
    (tmp_path / "a.jsonl").write_text('{"text": "e\\u0301"}\n{"text": "\u00e9"}\n')
    write_parquet(tmp_path / "b.parquet", pa.array(["\ufb01x"]))
    (tmp_path / "c.txt").write_text("\ufb01x")
    documents = read_all(config_of(tmp_path / "*", unicode_normalization=form))
    assert [document.text for document in documents] == texts
    assert sum(document.normalized for document in documents) == changed


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "txt"])
def test_sizes_are_bytes_of_the_text_and_both_limits_are_allowed(suffix: str, tmp_path: Path) -> None:
    """From 4 to 8 bytes; \u00e9 has two."""
    reasons = []
    for text in ("abc", "\u00e9a", "\u00e9\u00e9", "abcd", "abcdefgh", "\u00e9" * 4, "\u00e9" * 4 + "a", "abcdefghi"):
        path = tmp_path / f"text.{suffix}"
        match suffix:
            case "jsonl":
                path.write_text(json.dumps({"text": text}))
            case "parquet":
                write_parquet(path, pa.array([text]))
            case "txt":
                path.write_text(text)
        reasons += [d.reason for d in read_all(config_of(path, min_document_bytes=4, max_document_bytes=8))]
    assert reasons == ["too_small"] * 2 + [None] * 4 + ["too_large"] * 2


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_sizes_are_those_of_the_normalised_text(suffix: str, tmp_path: Path) -> None:
    """One character that becomes 18, and letters that become one with their accents."""
    texts, path = ["\ufdfa", "e\u0301" * 3], tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        write_parquet(path, pa.array(texts))
    documents = read_all(config_of(path, unicode_normalization="NFKC", max_document_bytes=6))
    assert [document.text or document.reason for document in documents] == ["too_large", "\u00e9" * 3]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ('{"_data_files": [{"filename": "gone.arrow"}]}', r"gone\.arrow: is missing; restore it"),
        ("{", r"state\.json: is damaged \(no JSON"),
        ('{"of": "something else"}', r"is a folder that holds 1 \.json"),
    ],
)
def test_a_folder_that_is_no_whole_dataset_is_named_on_one_line(state: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(state)
    with pytest.raises(SourceError, match=message) as caught:
        plan_partitions(config_of(tmp_path / "saved"))
    assert "\n" not in str(caught.value)


def test_a_folder_of_parts_is_read_and_what_its_writer_keeps_for_itself_is_not(tmp_path: Path) -> None:
    """As Spark writes it: the folder is named like a file, markers begin with _ or a point."""
    for name, text in (("part-1", "two"), ("part-0", "one"), ("year=2020/part-0", "three")):
        path = tmp_path / "texts.parquet" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, pa.array([text]))
    for name in ("_SUCCESS", "_metadata.parquet", ".part-0.parquet.crc"):
        (tmp_path / "texts.parquet" / name).write_bytes(b"no text")
    write_parquet(tmp_path / "z.parquet", pa.array(["four"]))
    expected = ["one", "two", "three", "four"]
    assert texts_of(config_of(tmp_path / "*.parquet")) == expected
    assert texts_of(config_of(tmp_path / "texts.parquet", tmp_path / "z.parquet")) == expected
    (tmp_path / "texts.parquet" / "notes.jsonl").write_text('{"text": "of another format"}')
    with pytest.raises(SourceError, match=r"notes\.jsonl: unknown kind of source; \.parquet files are read"):
        find_files(config_of(tmp_path / "*.parquet"))


@pytest.mark.parametrize("pattern", ["*", "*/*"])
def test_no_folder_that_matches_vanishes(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for place in (tmp_path / "a.jsonl", tmp_path / "more" / "b.jsonl", tmp_path / "more" / "deep" / "c.jsonl"):
        place.write_text(json.dumps({"text": place.stem}))
    with pytest.raises(SourceError, match=r"(more|deep): is a folder; name its files, e\.g\. .*\*\.jsonl"):
        find_files(config_of(tmp_path / pattern))
    assert texts_of(config_of(tmp_path / "**")) == ["a", "b", "c"]  # this one goes into them
    (tmp_path / "more" / "table.csv").write_text("text")
    with pytest.raises(SourceError, match=r"table\.csv: unknown kind"):
        find_files(config_of(tmp_path / "**"))


def test_hidden_names_are_skipped_unless_they_are_spelled(tmp_path: Path) -> None:
    for name in ("a.jsonl", "._a.jsonl", "_b.jsonl", ".ipynb_checkpoints/a.jsonl", "sub/_temporary/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    assert texts_of(config_of(tmp_path / "*.jsonl")) == ["a.jsonl"]
    assert texts_of(config_of(tmp_path / "**")) == ["a.jsonl"]
    assert texts_of(config_of(tmp_path / "_b.jsonl", tmp_path / "sub/_temporary/*")) == [
        "_b.jsonl",
        "sub/_temporary/c.jsonl",
    ]
    assert texts_of(config_of(tmp_path / "._*.jsonl")) == ["._a.jsonl"]
    with pytest.raises(SourceError, match=r"matches only names that begin with \. or _, which are skipped"):
        find_files(config_of(tmp_path / "sub" / "*"))


def test_a_hidden_folder_above_the_pattern_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "a.jsonl").write_text('{"text": "a"}')
    monkeypatch.chdir(tmp_path / ".work")
    assert texts_of(config_of("*.jsonl")) == ["a"]


def test_a_file_that_two_names_lead_to_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": 2}\n')
    (tmp_path / "link.jsonl").symlink_to(path)
    documents = read_all(config_of(path, tmp_path / "sub" / ".." / "a.jsonl", tmp_path / "*.jsonl"))
    assert [document.text or document.reason for document in documents] == ["one", "not_text"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(SourceError, match=r"a\.jsonl: is no file that can be read again"):
        find_files(config_of(tmp_path / "*.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", {"_data_files": [{"filename": "../secret.arrow"}]}, "no plain path inside the folder"),
        ("state.json", {"_data_files": [{"filename": "/etc/secret.arrow"}]}, "no plain path inside the folder"),
        ("state.json", {"_data_files": [{"filename": "state.json"}]}, r"state\.json: unknown kind of source; \.arrow"),
        ("state.json", {"_data_files": [{"name": "data-00000-of-00001.arrow"}]}, "does not name the files"),
        ("state.json", {"_data_files": 3}, "does not name the files"),
        ("state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}] * 2}, "each once"),
        ("state.json", [], r"state\.json: is damaged"),
        ("dataset_dict.json", {}, "does not name the splits"),
        ("dataset_dict.json", {"splits": ["../train"]}, "no plain path inside the folder"),
        ("dataset_dict.json", 3, r"dataset_dict\.json: is damaged"),
    ],
)
def test_what_a_saved_folder_says_of_itself_is_checked(name: str, content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "secret.arrow").write_bytes(b"")
    (save_like_datasets(tmp_path / "saved", [["one"]]) / name).write_text(json.dumps(content))
    with pytest.raises((SourceError, StorageError), match=message) as caught:
        find_files(config_of(tmp_path / "saved"))
    assert "\n" not in str(caught.value)


LINES = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100)).encode()
SKIPPED = b"\x50\x2a\x4d\x18\x05\0\0\0hello"  # a Zstandard frame without content


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("gz", gzip.compress(LINES) + bytes(512)),
        ("gz", gzip.compress(LINES[:30]) + bytes(5) + gzip.compress(LINES[30:]) + bytes(1)),
        ("gz", gzip.compress(b"") + gzip.compress(LINES)),
        ("zst", SKIPPED + zstd(LINES[:30]) + SKIPPED + zstd(b"") + zstd(LINES[30:]) + SKIPPED),
    ],
    ids=["padding", "padding between members", "empty member", "skippable frames"],
)
def test_a_compressed_file_is_read_as_its_own_tools_read_it(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(content)
    assert texts_of(config_of(tmp_path / f"a.jsonl.{suffix}")) == [f"text {i}" for i in range(100)]


def test_garbage_after_a_compressed_file_is_damage_after_all_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + b"garbage that is no stream")
    documents = read_all(config_of(tmp_path / "a.jsonl.gz", damaged_files="reject"))
    assert [document.reason for document in documents] == [None] * 100 + ["damaged_file"]


@pytest.mark.parametrize("damaged_files", ["fail", "reject"])
def test_a_frame_that_needs_much_memory_is_refused_with_its_reason(damaged_files: str, tmp_path: Path) -> None:
    """A window of 2 GiB, as `zstd --long=31` asks for; it is not damage, so rejecting it would lose the file."""
    block = b'{"text": "one"}\n'
    frame = b"\x28\xb5\x2f\xfd\0\xa8" + (1 | len(block) << 3).to_bytes(3, "little") + block
    (tmp_path / "a.jsonl.zst").write_bytes(frame)
    with pytest.raises(SourceError, match=r"needs more than 128 MiB .* pack it again .* --long=27"):
        read_all(config_of(tmp_path / "a.jsonl.zst", damaged_files=damaged_files))


def test_what_arrow_does_not_know_is_no_damage(tmp_path: Path) -> None:
    """Else a whole file would be lost as one reject."""
    path = tmp_path / "a.parquet"
    column = pa.array(["one", "two"] * 10).dictionary_encode()
    encoding: Any = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    pq.write_table(pa.table({"text": column}), path, **encoding)
    with pytest.raises(SourceError, match=r"a\.parquet: is of a form that is not read \(Not yet implemented"):
        read_all(config_of(path, damaged_files="reject"))


def test_a_flipped_page_with_a_checksum_is_noticed(tmp_path: Path) -> None:
    """In a page that is not compressed nothing else would tell."""
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a text of some length"]})
    pq.write_table(
        table, path, compression="none", use_dictionary=False, write_page_checksum=True, write_statistics=False
    )
    path.write_bytes(path.read_bytes().replace(b"a text of some", b"a lext of some"))
    with pytest.raises(SourceError, match="truncated or damaged"):
        read_all(config_of(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf16_is_one_reject_and_no_text_with_zeros(encoding: str, tmp_path: Path) -> None:
    """Its later parts would pass for UTF-8."""
    text = "\ufeff" * (encoding != "utf-16") + "plain words\n\n" * 1000
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    documents = read_all(config_of(tmp_path / "a.txt", partitions=3, txt_document_bytes=1000))
    assert [document.reason for document in documents] == ["not_utf8"]


def test_an_object_with_two_texts_loses_neither_silently(tmp_path: Path) -> None:
    lines = ['{"text": "one", "text": "two"}', '{"text": "kept", "spans": [{"text": "a"}, {"text": "b"}]}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents = read_all(config_of(tmp_path / "a.jsonl"))
    assert [document.text or document.reason for document in documents] == ["broken_json", "kept"]


def test_a_reject_is_told_without_control_characters(tmp_path: Path) -> None:
    """A name that clears the screen; an object store may hold it even where the local storage refuses it."""
    name = "a\x1b[2J.jsonl"
    (tmp_path / name).write_text("no json")
    try:
        [document] = read_all(config_of(tmp_path / "*"))
        told = document.origin
    except StorageError as error:
        told = str(error)
    assert told.isprintable() and "a\\x1b[2J.jsonl" in told
