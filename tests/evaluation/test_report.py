"""The page of an evaluation: what it says, and how it fits a phone."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser

from calm_core.evaluation.report import render_report
from calm_core.store.facts import BrierScores, EvaluationFacts, References, Score, TextSample
from tests.browser import DESK, PHONE, browser, opened

CURVES = {
    ("CALM: loss of the head", "loss"): [{"step": 1, "loss": 3.0}, {"step": 9, "loss": 2.5, "validation_loss": 2}]
}


def scores(value: float, low: float | None, high: float | None) -> BrierScores:
    def score(scale: float) -> Score:
        return Score(value=scale * value, low=low and scale * low, high=high and scale * high)

    return BrierScores(brierlm=score(100), brier={n: score(1) for n in "1234"})


def evaluation(*, one_sequence: bool = False, samples: list[TextSample] | None = None) -> EvaluationFacts:
    of_one = scores(0.1326, None, None)
    unigram = scores(0.01, None, None)
    facts = of_one if one_sequence else scores(0.1326, 0.1163, 0.1469)
    texts = [TextSample(prompt="A <b>prompt</b>\nof two lines", text=" and\n\ttext \x1b[2J\u202e http://me:word@host")]
    return EvaluationFacts(
        model="CALM, K = 4, flow head",
        autoencoder_accuracy=0.9988,
        protocol={"dataset": "d" * 64, "sequences": 222, "positions": 28040, "interval": "95% bootstrap"},
        references=References(untrained=unigram, unigram=unigram),
        samples=texts if samples is None else samples,
        **dict(facts),
    )


def page(facts: EvaluationFacts | None = None) -> str:
    settings: dict[str, Any] = {"samples": 8, "prompts": ["kept out"], "position_interval": None, "seed": 0}
    models = {"CALM": {"steps": 554, "model": {"head": {"kind": "flow"}}}}
    return render_report(facts or evaluation(), CURVES, settings, models, {"calm": "c" * 64, "dataset": "d" * 64})


def text_of(page: str) -> str:
    """What is read, without the style sheet and the pictures."""
    shown = re.sub(r"<(style|svg)\b.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(shown).split())


def test_the_page_says_what_was_measured_how_and_of_what() -> None:
    text = text_of(page())
    for said in (
        "CALM, K = 4, flow head",
        "222 held-out sequences, 28,040 places",
        "BrierLM 13.26 [11.63, 14.69]",
        "Brier-4 13.26 [11.63, 14.69] 1.00 1.00",
        "99.88 %",
        "BrierLM = 100 · (Brier-1 · Brier-2 · Brier-3 · Brier-4) 1/4",
        "samples 8",
        "model.head.kind flow",
        f"calm {'c' * 64}",
    ):
        assert said in text
    assert "None" not in text and "kept out" not in text


def test_its_numbers_are_those_of_the_terminal() -> None:
    """Once a score stood there as 0.1326 and here as 13.256."""
    assert not re.search(r"\d\.\d{3}", text_of(page()))


def test_the_same_evaluation_gives_the_same_bytes() -> None:
    assert page() == page()


def test_texts_keep_their_lines_and_do_nothing() -> None:
    """Neither markup nor control characters act, and no secret is told."""
    [prompt] = re.findall(r'<p class="prompt" dir="auto">(.*?)</p>', page(), re.DOTALL)
    [text] = re.findall(r'<blockquote dir="auto">(.*?)</blockquote>', page(), re.DOTALL)
    assert "<" not in prompt + text
    assert html.unescape(prompt) == "A <b>prompt</b>\nof two lines"
    assert html.unescape(text) == " and\n\ttext \\x1b[2J\\u202e http://***@host"
    assert ".prompt, blockquote { white-space: pre-wrap" in page()


def test_without_prompts_and_without_intervals_it_says_so() -> None:
    text = text_of(page(evaluation(one_sequence=True, samples=[])))
    assert "None: there were no prompts." in text
    assert text.count("[unknown]") == 6 and "it is unknown, since all places lie in one document" in text


def test_nothing_comes_from_elsewhere_and_pictures_are_told_in_words() -> None:
    written = page()
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\((?!#)", written)
    pictures = re.findall(r"<svg.*?</svg>", written, re.DOTALL)
    assert len(pictures) == 3
    labels = [ElementTree.fromstring(picture).attrib["aria-label"] for picture in pictures]
    assert labels[0].startswith("BrierLM with intervals: this model 13.26 [11.63, 14.69], token frequency 1.00")
    assert "Brier-1 13.26 [11.63, 14.69]" in labels[1]
    assert labels[2] == "Lines over the steps: training from 3 to 2.5, validation from 2 to 2"
    assert re.search(r"<html lang=\"en\">.*<meta name=\"viewport\"", written, re.DOTALL)


def luminance(colour: str) -> float:
    """Of a colour #rrggbb or #rgb, as the Web Content Accessibility Guidelines define it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_everything_can_be_read_in_light_in_dark_and_on_paper(scheme: str) -> None:
    """4.5 to 1 for text, 3 to 1 for the parts of a picture; and the pictures have the page's colours."""
    blocks = re.findall(r":root \{(.*?)\}", page(), re.DOTALL)
    block = blocks[("light", "dark", "print").index(scheme)]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", block))

    def contrast(one: str, other: str) -> float:
        low, high = sorted(luminance(colours[name]) for name in (one, other))
        return (high + 0.05) / (low + 0.05)

    for ground in ("paper", "panel"):
        assert all(contrast(name, ground) >= 4.5 for name in ("ink", "quiet", "prompt"))
    assert all(contrast(name, "paper") >= 3 for name in ("first", "second", "third", "fourth"))
    assert all(contrast(name, "paper") >= 4.5 for name in ("good", "held"))
    drawn = "".join(re.findall(r"<svg.*?</svg>", page(), re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) == {
        "none", "currentColor", "var(--first)", "var(--second)",
    }  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_is_no_wider_than_the_screen(chromium: Browser, width: int, tmp_path: Path) -> None:
    long = [TextSample(prompt="x" * 300, text="-" * 300 + "\n\n" + "word " * 100)]
    (tmp_path / "page.html").write_text(page(evaluation(samples=long)))
    with opened(chromium, tmp_path / "page.html", width=width) as seen:
        assert seen.overflow == 0


def test_it_runs_nothing_that_fails_asks_for_nothing_and_everybody_can_use_it(
    chromium: Browser, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(page())
    with opened(chromium, tmp_path / "page.html") as seen:
        assert seen.complaints == seen.requests == seen.violations() == []


def test_what_the_browser_is_asked_about_can_be_found(chromium: Browser, tmp_path: Path) -> None:
    """The test above can fail: with a script that breaks, a picture from elsewhere, and one that nobody can read."""
    bad = "<script>nothing()</script><img src='http://192.0.2.1/x.png'>"
    (tmp_path / "page.html").write_text(page().replace("<header>", f"<header>{bad}"))
    with opened(chromium, tmp_path / "page.html") as seen:
        assert any("nothing is not defined" in each for each in seen.complaints)
        assert seen.requests == ["http://192.0.2.1/x.png"]
        assert [each.partition(":")[0] for each in seen.violations()] == ["image-alt"]
