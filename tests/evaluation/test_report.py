"""The page of an evaluation: what it says, and how it fits a phone."""

import html
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from calm_core.evaluation.report import render_report
from calm_core.store.facts import BrierScores, EvaluationFacts, References, Score, TextSample

PHONE = 390  # pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
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
        "(222 sequences, 28,040 places)",
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
    [quoted] = re.findall(r"<blockquote>(.*?)</blockquote>", page(), re.DOTALL)
    assert html.unescape(re.sub("</?b>", "", quoted.replace("&lt;b", "&lt;B"))) == (
        "A <B>prompt</b>\nof two lines and\n\ttext \\x1b[2J\\u202e http://***@host"
    )
    assert "blockquote { " in page() and "white-space: pre-wrap" in page()


def test_without_prompts_and_without_intervals_it_says_so() -> None:
    text = text_of(page(evaluation(one_sequence=True, samples=[])))
    assert "None: there were no prompts." in text
    assert text.count("[unknown]") == 6 and "it is unknown, since all places lie in one sequence" in text


def test_nothing_comes_from_elsewhere_and_pictures_are_told_in_words() -> None:
    written = page()
    assert not re.findall(r"(?:src|href)=\"(?!#)", written)
    pictures = re.findall(r"<svg.*?</svg>", written, re.DOTALL)
    assert len(pictures) == 2
    labels = [ElementTree.fromstring(picture).attrib["aria-label"] for picture in pictures]
    assert "Brier-1 13.26 [11.63, 14.69]" in labels[0]
    assert labels[1] == "Lines over the steps: training from 3 to 2.5, validation from 2 to 2"
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
    assert all(contrast(name, "paper") >= 3 for name in ("first", "second"))
    drawn = "".join(re.findall(r"<svg.*?</svg>", page(), re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) == {
        "none", "currentColor", "var(--first)", "var(--second)",
    }  # fmt: skip


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_it_is_no_wider_than_the_screen(width: int, tmp_path: Path) -> None:
    """A browser measures it, with everything opened; it is shown in a frame, as browsers have a least width."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        message = "no browser is installed; Debian: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    long = [TextSample(prompt="x" * 300, text="-" * 300 + "\n\n" + "word " * 100)]
    opened = html.escape(page(evaluation(samples=long)).replace("<details>", "<details open>"))
    measuring = (
        "const page = document.querySelector('iframe').contentDocument.documentElement;"
        "const date = page.querySelector('#written').textContent;"
        "document.title = [page.clientWidth, page.scrollWidth, date].join(' ');"
    )
    (tmp_path / "frame.html").write_text(
        f'<!DOCTYPE html><iframe srcdoc="{opened}" width="{width}" height="900" style="border: 0"></iframe>'
        f"<script>onload = () => {{ {measuring} }}</script>"
    )
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    alone = ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/profile"]
    command = [browser, *quiet, *alone, "--dump-dom", (tmp_path / "frame.html").as_uri()]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"<title>(\d+) (\d+) Written (.*?)</title>", shown)
    assert found, shown
    visible, needed = int(found[1]), int(found[2])
    assert width - 20 <= visible <= width  # less a scrollbar
    assert needed == visible
    assert re.search(r"20\d\d", found[3])  # the year of its file
