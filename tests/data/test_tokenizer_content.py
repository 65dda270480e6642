"""What stands for a named tokenizer in a cache key: the content of all files that it is read from."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_core.config import TokenizerConfig
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.data.tokenizers.content import digest_of_source
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import SourceError
from calm_core.store import storage
from tests.data.test_prepare import data_of, texts, write_lines


def json_of(vocab_size: int) -> bytes:
    return Tokenizer.train(["a river flows past a river"] * 9, vocab_size).to_bytes()


def ranks() -> bytes:
    return b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256))


SPECIAL = json.dumps({"pad_token": "<|pad|>", "eos_token": {"content": "<|endoftext|>"}}).encode()
LAYOUTS: dict[str, tuple[str, dict[str, bytes]]] = {
    "a folder": (
        "",
        {"tokenizer.json": json_of(262), "special_tokens_map.json": SPECIAL, "tokenizer_config.json": SPECIAL},
    ),
    "a file": ("/tokenizer.json", {"tokenizer.json": json_of(262), "tokenizer_config.json": SPECIAL}),
    "a file of another name": ("/mine.json", {"mine.json": json_of(262), "special_tokens_map.json": SPECIAL}),
    "Llama's file": ("/tokenizer.model", {"tokenizer.model": ranks()}),
    "Llama's folder": ("", {"tokenizer.model": ranks()}),
    "Llama's other folder": ("", {"original/tokenizer.model": ranks()}),
}
in_every_layout = pytest.mark.parametrize(("name", "files"), LAYOUTS.values(), ids=LAYOUTS.keys())


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@in_every_layout
def test_each_file_that_is_read_counts(
    name: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it changes, goes, or comes to be where none was."""
    write(tmp_path / "tok", files)
    source, read = f"{tmp_path}/tok{name}", []
    with monkeypatch.context() as patched:
        patched.setattr(storage, "read", lambda uri, *rest: (read.append(uri), original(uri, *rest))[1])
        Tokenizer.load(source)
    assert {str(tmp_path / "tok" / path) for path in files} == set(read)

    before = digest_of_source(source)
    seen = {before}
    for path, content in files.items():
        write(tmp_path / "tok", {path: content.replace(b"2", b"3", 1) + b" "})
        seen.add(digest_of_source(source))
        (tmp_path / "tok" / path).unlink()
        seen.add(digest_of_source(source))
        write(tmp_path / "tok", {path: content})
    assert len(seen) == 1 + 2 * len(files)
    assert digest_of_source(source) == before
    if not name.endswith(".model"):
        (tmp_path / "tok" / "special_tokens_map.json").write_bytes(b"{}")
        assert digest_of_source(source) != before


original: Callable[..., bytes] = storage.read


@in_every_layout
def test_a_copy_elsewhere_is_the_same(
    name: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("tok", "elsewhere/tok"):
        write(tmp_path / folder, files)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert digest_of_source(f"{tmp_path}/tok{name}") == digest_of_source(f"tok{name}") != digest_of_source("nowhere")


def test_no_source_has_no_digest() -> None:
    assert digest_of_source("") == ""


def test_a_tokenizer_that_changes_after_the_plan_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "tok", {"tokenizer.json": json_of(262)})
    config = data_of(write_lines(tmp_path / "texts.jsonl", texts(20)))
    partitions = plan_partitions(config, f"{tmp_path}/plan")
    settings = TokenizerConfig(source=f"{tmp_path}/tok")
    planned = digest_of_source(settings.source)
    assert train_tokenizer(partitions, settings, config, f"{tmp_path}/a", planned).facts.vocab_size == 262
    write(tmp_path / "tok", {"tokenizer.json": json_of(260)})
    with pytest.raises(SourceError, match=r"tok: the tokenizer has changed since the run was planned; run again"):
        train_tokenizer(partitions, settings, config, f"{tmp_path}/b", planned)
