"""The default corpus."""

import html
import json
import re
from pathlib import Path

import pytest

from calm_core.data.sources.factbook import page_text, write_factbook


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("factbook") / "factbook.jsonl"
    write_factbook(path)
    return path


def test_it_holds_every_country_page_once_as_plain_text(corpus: Path) -> None:
    """256 pages: the number in the package's version 0.1.2."""
    pages = [json.loads(line) for line in corpus.read_text().splitlines()]
    assert len(pages) == len({page["id"] for page in pages}) == 256
    for page in pages:
        assert len(page["text"]) > 500, page["id"]
        assert not re.search(r"</?[a-zA-Z][^>]*>", page["text"]), page["id"]
        assert html.unescape(page["text"]) == page["text"], page["id"]


def test_a_second_call_leaves_the_file_alone(corpus: Path) -> None:
    before, written = corpus.read_bytes(), corpus.stat().st_mtime_ns
    write_factbook(corpus)
    assert (corpus.read_bytes(), corpus.stat().st_mtime_ns) == (before, written)
    assert [path.name for path in corpus.parent.iterdir()] == [corpus.name]


def test_another_content_is_replaced_by_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "factbook.jsonl"
    path.parent.mkdir()
    path.write_text("old")
    write_factbook(path)
    assert path.read_bytes() == corpus.read_bytes()


def test_a_page_becomes_lines_of_fields() -> None:
    page = {
        "Geography": {
            "Area": {
                "total": {"text": "5 sq km"},
                "note": {"text": "about <b>half</b> is ice&nbsp;&amp; rock&amp;nbsp;"},
            },
            "Coastline": {"text": "  0 km  "},
            "Nothing": {"text": ""},
        },
        "source": "not a category",
    }
    assert page_text(page) == "Geography\nArea: total: 5 sq km; note: about half is ice & rock\nCoastline: 0 km"
