"""The page about a whole run: what it says first, that anyone can read it anywhere, and that it does nothing."""

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from calm_core.evaluation.report import WholeRun, render_report
from calm_core.store.facts import TrainingCost
from tests.browser import DESK, PHONE, browser, opened
from tests.report.pages import ARABIC, EMOJI, dataset, evaluation, page, registration, whole_run


def text_of(page: str) -> str:
    """What is read, without the style sheet and the pictures."""
    shown = re.sub(r"<(style|svg|script)\b.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(shown).split())


def test_the_verdict_comes_first_then_how_it_compares() -> None:
    text = text_of(page())
    said = (
        "calm version 4 is champion BrierLM is higher by 1.32 [0.41, 2.20], p = 0.004",
        "significance: met ; it is better: 1.32",
        "against version 3, champion before +1.32 [0.41, 2.20] p = 0.004",
        "FLOPs of training 3.51e13",
        "prepare 21 s train-autoencoder 2 min 10 s from the cache train-calm 1 h 03 min evaluate time unknown",
        "CALM 1,000,000 3.30e13 1 h 03 min 2 Wh",
        "this model interval champion baseline token frequency untrained BrierLM 18.40",
        "this model: perplexity of the next 4 tokens (upper bound from 8 samples) 41.2 [38.0, 45.0]",
        "sampled 4-grams that occur in training text 41.00 % (true text: 63.00 %)",
        "rejected: broken <JSON> 3",
        "calm run --source 's3://***@bucket/*'",
        "calm --version tells library-0123",
    )
    assert [each for each in said if each not in text] == []
    assert [text.index(each) for each in said[:4]] == sorted(text.index(each) for each in said[:4])


def test_a_model_that_stays_challenger_is_told_as_such() -> None:
    text = text_of(page(run=whole_run(promoted=False)))
    assert "calm version 4 is not champion" in text and "significance: not met" in text
    assert "against version 3, champion +1.32" in text


def test_what_is_not_known_is_left_out() -> None:
    """An evaluation of an earlier version, and a run without champion, baseline and MLflow."""
    old = evaluation().model_copy(
        update={"autoencoder": None, "language_model": None, "written": [], "speed": None, "costs": {}}
    )
    first = registration().model_copy(update={"comparison": None, "champion": "", "checks": []})
    text = text_of(page(old, WholeRun(registration=first)))
    for part in (
        "against version",
        "Quality against",
        "What it has cost",
        "Where the model is right",
        "Sources",
        "None",
    ):
        assert part not in text.replace("None: there were no prompts.", "")


def test_its_links_lead_to_parts_that_are_there() -> None:
    """Also of models from elsewhere, which have no learning curves."""
    bare = evaluation().model_copy(update={"autoencoder": None, "language_model": None})
    for written in (page(), render_report(bare, {}, {}, {}, {}, WholeRun(registration=registration()))):
        links, names = (set(re.findall(rf' {what}"([^"]+)"', written)) for what in ("href=", "id="))
        assert {link.removeprefix("#") for link in links if link.startswith("#")} - names == set()
        assert "#texts" in links


def test_the_same_run_gives_the_same_bytes_and_parts_have_names_of_their_own() -> None:
    written = page()
    assert written == page()
    names = re.findall(r' id="([^"]+)"', written)
    assert len(names) == len(set(names))


def test_a_long_run_gives_a_page_that_can_be_sent() -> None:
    written = page(evaluation(texts=300), steps=100_000)  # 1,200 prompts
    assert len(written.encode()) < 4 << 20
    assert "Texts of 1,160 more prompts are in evaluation.json." in written


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page") / "report.html"
    place.write_text(page(evaluation(texts=12)))
    return place


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it_and_it_asks_for_nothing(chromium: Browser, file: Path, width: int, scheme: str) -> None:
    with opened(chromium, file, width=width, scheme=scheme) as seen:  # type: ignore[arg-type]
        assert seen.overflow == 0
        assert seen.complaints == seen.requests == seen.violations() == []
        paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")


def test_no_picture_cuts_off_its_words(chromium: Browser, tmp_path: Path) -> None:
    """Models that took nearly the same and score 0: short ranges have long numbers beside them."""
    none = evaluation(0.0)
    cheaper = {"transformer": TrainingCost(flops=1.6e13, tokens=1, seconds=1.0)}
    run = replace(whole_run(), champion=None, baseline=none.model_copy(update={"costs": cheaper}))
    (tmp_path / "page.html").write_text(page(none, run))
    cut_off = """() => [...document.querySelectorAll("svg")].flatMap(picture => {
        const whole = picture.getBoundingClientRect();
        return [...picture.querySelectorAll("text")].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < whole.left - 1 || box.right > whole.right + 1
                || box.top < whole.top - 1 || box.bottom > whole.bottom + 1;
        }).map(text => text.textContent);
    })"""
    with opened(chromium, tmp_path / "page.html") as seen:
        assert seen.page.evaluate(cut_off) == []
        [compute] = seen.page.locator("svg[aria-label^='BrierLM over the FLOPs']").all()
        ticks = [text for text in compute.locator("text").all_text_contents() if "e" in text and text[0].isdigit()]
        assert len(ticks) == len(set(ticks)) > 1


def test_texts_have_their_own_direction_and_all_their_characters(chromium: Browser, file: Path) -> None:
    with opened(chromium, file) as seen:
        prompt = seen.page.get_by_text(f"{ARABIC} 0", exact=True)
        assert prompt.evaluate("each => each.matches(':dir(rtl)')")
        assert seen.page.get_by_text(f"{EMOJI} 0", exact=True).count() == 1


def test_temperatures_stand_side_by_side_on_a_desk_and_below_each_other_on_a_phone(
    chromium: Browser, file: Path
) -> None:
    for width, rows in ((DESK, 1), (PHONE, 3)):
        with opened(chromium, file, width=width) as seen:
            boxes = [each.bounding_box() for each in seen.page.locator(".texts").first.locator("figure").all()]
            assert len({box["y"] for box in boxes if box}) == rows


HOSTILE = "<script>alert(1)</script><!--</style>\u202e\x00{{ 7 * 7 }}" + "w" * 10_000


def test_names_from_outside_fit_and_do_nothing_whatever_they_are(chromium: Browser, tmp_path: Path) -> None:
    source = dataset().sources[0].model_copy(update={"uri": HOSTILE, "size": 10**15})
    data = dataset().model_copy(update={"rejected": {HOSTILE: 1}, "reject_examples": [HOSTILE], "sources": [source]})
    facts = evaluation().model_copy(update={"model": HOSTILE, "protocol": {**evaluation().protocol, HOSTILE: HOSTILE}})
    (tmp_path / "page.html").write_text(page(facts, replace(whole_run(), dataset=data, command=HOSTILE)))
    for width in (DESK, PHONE):
        with opened(chromium, tmp_path / "page.html", width=width) as seen:
            assert seen.overflow == 0
            assert seen.complaints == seen.requests == []
            assert all(box["width"] > 100 for each in seen.page.get_by_text("ww").all() if (box := each.bounding_box()))


def test_its_policy_lets_no_other_script_run(chromium: Browser, tmp_path: Path) -> None:
    bad = "<script>document.title = 'taken'</script>"
    (tmp_path / "page.html").write_text(page().replace("<header>", f"<header>{bad}"))
    with opened(chromium, tmp_path / "page.html", bypass_csp=False) as seen:
        [complaint] = seen.complaints
        assert "Content Security Policy" in complaint and seen.page.title() == "calm version 4 is champion"


def test_inside_of_another_page_its_links_stay_in_it(chromium: Browser, file: Path) -> None:
    """As Kubeflow shows it: once a link to a part of it led to that page instead."""
    with opened(chromium, file) as seen:
        frame = "page => document.body.innerHTML = '<iframe sandbox=allow-scripts></iframe>'"
        seen.page.evaluate(frame)
        seen.page.evaluate("html => document.querySelector('iframe').srcdoc = html", file.read_text())
        inside = seen.page.frame_locator("iframe")
        inside.locator("nav a[href='#data']").click()
        assert inside.locator("#data").evaluate("each => [location.href, scrollY > 0]") == ["about:srcdoc#data", True]


def test_on_paper_it_is_black_on_white_and_nothing_is_cut_off(chromium: Browser, file: Path) -> None:
    with opened(chromium, file, width=680, scheme="dark") as seen:  # A4 less its margins
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        wide = "[...document.querySelectorAll('.wide')].filter(each => each.scrollWidth > each.clientWidth + 1).length"
        assert seen.overflow == seen.page.evaluate(wide) == 0
        assert seen.page.pdf(format="A4").startswith(b"%PDF")
        breaks = "getComputedStyle(document.querySelector('blockquote')).breakInside"
        assert seen.page.evaluate(breaks) == "auto"  # one longer than a page was printed over what follows
