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
