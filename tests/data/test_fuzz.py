"""Bad lines of every kind through the whole of preparing: in = out + rejected + duplicates, and the good ones stay."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
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
    print(facts.documents_out, sum(facts.rejected.values()), peak.split()[1], file=sys.stderr)
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
    run = subprocess.run([sys.executable, "-c", PROGRAM, *configs], stderr=subprocess.PIPE, text=True, check=True)
    (*small, small_peak), (*large, large_peak) = (map(int, line.split()) for line in run.stderr.splitlines())
    assert small == large == [len(GOOD), 1]
    # JSON may spend 6 bytes on one of a text's 10 MB, other fields 16 MiB: so much of a line is kept, for a moment
    # twice, and a buffer that grows may be copied once more.
    assert large_peak - small_peak < 240_000  # KiB
