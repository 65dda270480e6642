"""`calm generate`: byte for byte into a file or pipe, nothing that acts on a terminal."""

import io
import sys
from collections.abc import Iterator, Sequence

import pytest

from calm_cli import models
from calm_cli.main import main

PROMPT, TEXT = "a\tb\r\n\x1b[2J", "\x00c\x07\td\n\u202ee\x9b1m é日\r"


class Writer:
    """Writes the same text, control characters and all, whatever the prompt."""

    def stream(self, prompts: Sequence[str], **_: object) -> Iterator[tuple[int, str]]:
        return ((number, character) for number in range(len(prompts)) for character in TEXT)


class Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    return int(ending.value.code or 0)


@pytest.fixture(autouse=True)
def writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_generator", lambda *_: Writer())


@pytest.mark.parametrize("prompts", [[PROMPT], [PROMPT, ""]], ids=["one", "two"])
def test_a_pipe_gets_every_byte(prompts: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert call("generate", *prompts, "--model", "out/calm") == 0
    assert capfdbinary.readouterr().out == "".join(f"{prompt}{TEXT}\n" for prompt in prompts).encode()


@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["no prompt", "-"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_standard_input_is_a_prompt_less_one_newline(
    arguments: list[str], end: bytes, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\r\n\xc3\xa9\n" + end), encoding="ascii"))
    assert call("generate", *arguments, "--model", "out/calm") == 0
    prompt = b"a\r\n\xc3\xa9\n" if end else b"a\r\n\xc3\xa9"
    assert capfdbinary.readouterr().out == prompt + f"{TEXT}\n".encode()


def test_without_a_prompt_a_terminal_is_told_how_to_give_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Screen(io.BytesIO(b"typed")))
    assert call("generate", "--model", "out/calm") == 2
    assert "PROMPT is missing" in capsys.readouterr().err
    assert call("generate", "-", "--model", "out/calm") == 0  # asked for, it is read
    captured = capsys.readouterr()
    assert captured.err == "type the prompt; Ctrl-D on a line of its own ends it\n"
    assert captured.out.startswith("typed")


@pytest.mark.parametrize("prompts", [[PROMPT], [PROMPT, ""]], ids=["one", "two"])
def test_a_terminal_shows_what_would_act_on_it(prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    assert call("generate", *prompts, "--model", "out/calm") == 0
    shown = screen.buffer.getvalue().decode()  # type: ignore[attr-defined]  # bytes, as it is made above
    for style in ("\x1b[1m", "\x1b[0m"):  # our own, of the prompt
        shown = shown.replace(style, "")
    prompt, text = "a\tb\\r\n\\x1b[2J", "\\x00c\\x07\td\n\\u202ee\\x9b1m é日\\r\n"
    assert shown == prompt + text + (text if len(prompts) == 2 else "")
