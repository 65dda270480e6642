"""Sources: each document is read once, each bad one is counted under its reason."""

import gc
import json
import random
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from calm_core.config import DataConfig
from calm_core.data.formats import Document
from calm_core.data.sources import Partition, find_files, partition_files, read_documents
from calm_core.errors import SourceError, StorageError

PLANS = tempfile.TemporaryDirectory()


def config_of(*sources: Path | str, partitions: int = 1, **settings: Any) -> DataConfig:
    return DataConfig(sources=tuple(str(source) for source in sources), partitions=partitions, **settings)


def plan_partitions(config: DataConfig) -> list[dict[str, Any]]:
    place = tempfile.mkdtemp(dir=PLANS.name)
    return [part.model_dump() for part in partition_files(find_files(config), config.partitions, place)]


def read_all(config: DataConfig) -> list[Document]:
    return [document for partition in plan_partitions(config) for document in read_documents(partition, config)]


def texts_of(config: DataConfig) -> list[str]:
    documents = read_all(config)
    assert [document for document in documents if document.reason] == []
    return [document.text for document in documents]


LIMIT = 200  # max_document_bytes of the bad lines
LONGEST_LINE = 6 * LIMIT + 1024  # JSON may spend 6 bytes on one byte of text; the rest is room for other fields

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
    (json.dumps({"text": "a" * (3 * LONGEST_LINE)}).encode(), "too_large"),
    (b" " * (2 * LONGEST_LINE) + b'{"text": "far right"}', "too_large"),
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
    assert bad.origin.endswith(f"bad.jsonl:{len(first)}")


def test_a_file_of_all_bad_lines_loses_none_however_it_is_cut(tmp_path: Path) -> None:
    lines = [line for line, _ in BAD_LINES for _ in range(3)]
    random.Random(0).shuffle(lines)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    reasons = Counter(document.reason for document in read_all(config_of(path, partitions=5, max_document_bytes=LIMIT)))
    assert reasons == {reason: 3 * count for reason, count in Counter(reason for _, reason in BAD_LINES).items()}


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
    travelled = json.loads(json.dumps(plan_partitions(config)), parse_int=float)
    documents = [document.text for partition in travelled for document in read_documents(partition, config)]
    assert documents == [f"text {i}" for i in range(9)]


def test_partitions_are_shares_of_nearly_equal_bytes(tmp_path: Path) -> None:
    """.jsonl files are cut anywhere, so only the rounding of a cut is between the shares."""
    for name, lines in (("a", 5), ("b", 50), ("c", 1)):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a line"}\n' * lines)
    partitions = plan_partitions(config_of(tmp_path / "*.jsonl", partitions=4))
    shares = [sum(p.end - p.start for p in Partition.model_validate(part).pieces()) for part in partitions]
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
        ("*.txt", r"\*.txt: no such file, and nothing matches"),
        ("table.csv", r"table.csv: unknown kind of source; \.jsonl, .*\.parquet, \.txt files"),
        ("folder", r"folder: is a folder; name its files, e.g. .*folder/\*.jsonl"),
    ],
)
def test_a_source_that_cannot_be_read_is_named_on_one_line(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("text\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=message) as caught:
        plan_partitions(config_of(tmp_path / source))
    assert "\n" not in str(caught.value)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(StorageError, match=r"nonsense://texts\.jsonl: cannot be used \(Protocol not known"):
        plan_partitions(config_of("nonsense://texts.jsonl"))


def test_no_sources_is_an_error_that_says_how_to_name_them() -> None:
    with pytest.raises(SourceError, match=r"data.sources is empty; name .* --source"):
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
