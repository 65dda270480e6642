"""Bad lines of every kind through the whole of preparing: in = out + rejected + duplicates, and the good ones stay."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_core.data.stage import prepare_data
from tests.data.test_prepare import TOKENIZER, data_of, documents_of

GOOD = [f"good text {i}" for i in range(8)]  # some of each split
MARK = b"\xef\xbb\xbf"  # of UTF-8's byte order
LIMIT = 1000  # max_document_bytes; a line may have 6 times as many and 1 KiB
BAD_LINES = [
    b"\xff\xfe\x00",
    b'{"text": "caf\xe9"}',
    b'{"text": "\xed\xa0\x80"}',  # a surrogate in UTF-8's clothes
    b'{"text": "\\ud800"}',
    b'{"text": "\\udc00\\ud800 turned round"}',
    b'{"\\ud800": "surrogate", "text": "key"}',
    b"\0",
    b'{"text": "raw \0"}',
    b'{"text": "escaped \\u0000"}',
    b'{"te\0xt": 1}',
    b'{"text": 1e999}',
    b'{"text": "huge", "n": 1e999}',
    b'{"text": "huge", "n": ' + b"9" * 5000 + b"}",
    b'{"text": ' + b"9" * 5000 + b"}",
    b'{"text": NaN}',
    b'{"text": [1]}',
    b'{"text": {"text": "nested"}}',
    b'{"text": null}',
    b'{"text": "first", "text": "second"}',
    b'{"text": "twice", "text": 2}',
    b'{"other": "no text"}',
    b"{}",
    b"[]",
    b'"text"',
    b"[" * 3000,
    b"[" * 100_000,
    b'{"text": ' + b'{"a":' * 1000 + b"1" + b"}" * 1001,
    b'{"text": "cut',
    b'{"text": "two"}{"text": "objects"}',
    b"{'text': 'quotes'}",
    MARK,
    MARK + b'{"text": "marked"}',
    MARK * 2 + b'{"text": "marked twice"}',
    b"",
    b" \t\r",
    b"\x0b\x0c",
    b"\x1c",  # blank for str, not for bytes
    b'{"text": "\\u2028\\u0085 \\u3000"}',
    b'{"text": "\xe2\x80\xa8 line\xc2\x85ends"}',
    b'{"text": "carriage\rreturn"}',
    b'{"text": "' + b"x" * (LIMIT + 1) + b'"}',
    b"x" * (6 * LIMIT + 1024),
    b" " * (6 * LIMIT + 1024) + b"x",
    b'{"text": "good text 0"}',
    b'{"text": "<|endoftext|><|pad|>"}',
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "a"]), inner, max_size=2),
    max_leaves=5,
)
BYTES = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b""))
LINES = (
    st.sampled_from(BAD_LINES)
    | BYTES
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.text(max_size=20).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode())
    | st.builds(lambda before, data, after: before + data + after, BYTES, st.sampled_from(BAD_LINES), BYTES)
)


def zstd(data: bytes) -> bytes:
    file = pa.BufferOutputStream()
    with pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(data)
    return bytes(file.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstd}


def check(lines: list[bytes], suffix: str, **settings: Any) -> None:
    """Prepare the lines with good ones between them, and count."""
    for i, text in enumerate(GOOD):
        lines.insert((i + 1) * len(lines) // len(GOOD), json.dumps({"text": text}).encode())
    with TemporaryDirectory() as place:
        Path(f"{place}/lines.{suffix}").write_bytes(PACK[suffix](b"\n".join(lines)))
        data = data_of(f"{place}/*.{suffix}", max_document_bytes=LIMIT, max_reject_fraction=0.999, **settings)
        dataset = prepare_data(data, TOKENIZER, f"{place}/dataset")
        documents = [text for texts in documents_of(dataset).values() for text in texts]
    facts = dataset.facts
    assert facts.documents_in == sum(bool(line.strip()) for line in lines)
    assert facts.documents_in == len(documents) + sum(facts.rejected.values()) + facts.duplicates
    assert facts.documents_out == len(documents) == len(set(documents))
    assert set(GOOD) <= set(documents)


@given(
    lines=st.lists(LINES, max_size=25),
    suffix=st.sampled_from([*PACK]),
    partitions=st.integers(1, 4),
    form=st.sampled_from(["none", "NFC", "NFKC"]),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_no_line_is_lost_or_takes_its_neighbour(lines: list[bytes], suffix: str, partitions: int, form: str) -> None:
    check(lines, suffix, partitions=partitions, unicode_normalization=form)


@pytest.mark.parametrize("partitions", [1, 7])
def test_all_crafted_lines_at_once(partitions: int) -> None:
    check([*BAD_LINES], "jsonl", partitions=partitions)


PROGRAM = """
import sys
from pathlib import Path
from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.stage import prepare_data

for config in sys.argv[1:]:
    data = DataConfig.model_validate_json(config)
    facts = prepare_data(data, TokenizerConfig(vocab_size=260), data.sources[0] + ".dataset").facts
    [peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(facts.documents_out, sum(facts.rejected.values()), peak.split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_line_of_100_mb_is_one_reject_in_bounded_memory(suffix: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in GOOD]
    configs = []
    for name, blocks in (("small", 1), ("large", 100)):
        path = tmp_path / f"{name}.{suffix}"
        with gzip.open(path, "wb", compresslevel=1) if suffix.endswith("gz") else path.open("wb") as file:
            file.writelines(lines[:4])
            for _ in range(blocks):
                file.write(b"x" * 10**6)
            file.writelines([b"\n", *lines[4:]])
        configs.append(data_of(path, partitions=2, max_reject_fraction=0.5).model_dump_json())
    run = subprocess.run([sys.executable, "-c", PROGRAM, *configs], stdout=subprocess.PIPE, text=True, check=True)
    (*small, small_peak), (*large, large_peak) = (map(int, line.split()) for line in run.stdout.splitlines())
    assert small == large == [len(GOOD), 1]
    # JSON may spend 6 bytes on one of a text's 10 MB, other fields 16 MiB: so much of a line is kept, for a moment
    # twice, and a buffer that grows may be copied once more.
    assert large_peak - small_peak < 240_000  # KiB


READ = """
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path
from calm_core.config import DataConfig
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.files import find_files
from calm_core.data.sources.partitions import partition_files
from calm_core.errors import SourceError

[start] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize")]
limit = (int(start.split()[1]) << 10) + (int(sys.argv[2]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
config = DataConfig(sources=(sys.argv[1],), partitions=1)
reasons = Counter()
try:
    for part in partition_files(find_files(config), 1, tempfile.mkdtemp()):
        for document in read_documents(part, config):
            reasons[document.reason or "usable"] += 1
    print(dict(reasons))
except SourceError as error:
    print(error)
"""
ROOM = 800  # MiB of addresses beyond those of the start: what is really used is up to a third of them


def shared(text: str, rows: int) -> pa.Table:
    """One text of many rows, which a file holds once."""
    return pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))})


def save_parquet(table: pa.Table, **options: Any) -> Callable[[Path], Path]:
    def save(place: Path) -> Path:
        pq.write_table(table, place / "a.parquet", compression="zstd", **options)
        return place / "a.parquet"

    return save


def save_arrow(table: pa.Table, **options: Any) -> Callable[[Path], Path]:
    def save(place: Path) -> Path:
        settings = pa.ipc.IpcWriteOptions(**options)
        with (
            pa.OSFile(f"{place}/data.arrow", "wb") as file,
            pa.ipc.new_stream(file, table.schema, options=settings) as stream,
        ):
            stream.write_table(table)
        (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
        return place

    return save


def save_long_message(place: Path) -> Path:
    """A message that claims to be of two GiB."""
    save_arrow(pa.table({"text": ["one"]}))(place)
    content = (place / "data.arrow").read_bytes()
    (place / "data.arrow").write_bytes(content[:4] + (2**31 - 8).to_bytes(4, "little") + content[8:])
    return place


def save_objects(place: Path) -> Path:
    """20 million objects in a line that packs to 300 KB; each takes 70 bytes of memory and more."""
    (place / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "x": [' + b"{}," * 20_000_000 + b"{}]}", 1))
    return place / "a.jsonl.gz"


def save_zeros(place: Path) -> Path:
    (place / "a.jsonl.gz").write_bytes(gzip.compress(bytes(400_000_000), 1) + gzip.compress(b'\n{"text": "next"}\n'))
    return place / "a.jsonl.gz"


DELTA: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a dictionary's text": (save_parquet(shared("x" * 10_000_001, 100), store_schema=False), "{'too_large': 100}"),
    "a category's text": (save_parquet(shared("x" * 10_000_001, 90)), "{'too_large': 90}"),
    "usable texts without end": (save_parquet(shared("x" * 9_000_000, 2000)), r"bytes stand for more than .* bytes"),
    "a text repeated by prefix": (save_parquet(pa.table({"text": ["y" * 10_000_001] * 60}), **DELTA), "too_large': 60"),
    "a page": (save_parquet(pa.table({"text": ["z" * 500_000_000]})), r"a page of .* bytes asks for 500,000,0\d\d"),
    "rows": (save_parquet(pa.table({"text": pa.nulls(20_000_000, pa.string())})), "bytes stand for 20,000,000 rows"),
    "Arrow's compression": (save_arrow(pa.table({"text": ["q" * 10**8] * 9}), compression="zstd"), "is compressed"),
    "Arrow's empty rows": (save_arrow(pa.table({"text": pa.nulls(20_000_000)})), "bytes stand for 20,000,000 rows"),
    "a long message": (save_long_message, "truncated or damaged"),
    "objects": (save_objects, "{'too_large': 1}"),
    "zeros": (save_zeros, "{'too_large': 1, 'usable': 1}"),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit of memory is set from Linux's /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_counted_or_refused_in_bounded_memory(name: str, tmp_path: Path) -> None:
    save, told = BOMBS[name]
    command = [sys.executable, "-c", READ, str(save(tmp_path)), str(ROOM)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert re.search(told, run.stdout), run.stdout


def test_a_line_of_many_commas_in_its_text_is_kept(tmp_path: Path) -> None:
    """They are counted only outside of strings."""
    text = ",[{" * 1_000_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text, "quote": '\\",{'}))
    run = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "a.jsonl"), str(ROOM)], capture_output=True, text=True, check=True
    )
    assert run.stdout == "{'usable': 1}\n"
