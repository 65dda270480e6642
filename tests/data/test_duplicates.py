"""Duplicates: each text once, whichever partition repeats it; nearly equal texts where that is asked for."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from calm_core.config import DataConfig, parse_section
from calm_core.data.preparing import dropped, duplicates, keys
from calm_core.data.preparing.dropped import DUPLICATE, KEPT, NEAR_DUPLICATE, read_dropped
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DatasetFacts, ScanFacts
from tests.data.test_prepare import TOKENIZER, data_of, write_lines


def scans_of(config: DataConfig, place: Path) -> list[str]:
    partitions = plan_partitions(config, f"{place}/plan")
    return [scan_partition(part, config, f"{place}/scan-{i}").uri for i, part in enumerate(partitions)]


def kinds_of(texts: list[str], place: Path, **settings: Any) -> list[int]:
    """What becomes of each text, in order; the counts agree."""
    config = data_of(write_lines(place / "texts.jsonl", texts), **settings)
    found = find_duplicates(scans_of(config, place), config, f"{place}/duplicates")
    kinds = [kind for i in range(config.partitions) for kind in read_dropped(found, f"dropped/{i:05d}.parquet")]
    counts = found.facts.duplicates, found.facts.near_duplicates
    assert counts == (kinds.count(DUPLICATE), kinds.count(NEAR_DUPLICATE))
    assert len(kinds) == len(texts)
    return kinds


def exact_kinds(texts: list[str]) -> list[int]:
    return [DUPLICATE if text in texts[:i] else KEPT for i, text in enumerate(texts)]


@pytest.fixture(params=["as they are", "tiny"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with so few keys sorted, compared and written at a time that each test crosses many borders."""
    if request.param == "tiny":
        monkeypatch.setattr(keys, "_RUN_DOCUMENTS", 7)
        monkeypatch.setattr(duplicates, "_RANGE_DOCUMENTS", 5)
        monkeypatch.setattr(dropped, "_SLICE_DOCUMENTS", 8)


@pytest.mark.parametrize("partitions", [1, 2, 7, 40])
def test_the_first_of_equal_texts_stays(partitions: int, limits: None, tmp_path: Path) -> None:
    """200 texts out of 120 different ones, compared with each other one by one."""
    numbers = random.Random(partitions)
    texts = [f"text {numbers.randrange(120)}" for _ in range(200)]
    assert kinds_of(texts, tmp_path, partitions=partitions) == exact_kinds(texts)


def test_a_text_that_is_repeated_thousands_of_times_stays_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More often than keys are compared at a time: they cannot be told apart by ranges of keys."""
    monkeypatch.setattr(keys, "_RUN_DOCUMENTS", 500)
    monkeypatch.setattr(duplicates, "_RANGE_DOCUMENTS", 100)
    texts = ["again", *(f"text {i}" for i in range(50))]
    texts = texts[1:20] + ["again"] * 3000 + texts + ["again"] * 10
    assert kinds_of(texts, tmp_path, partitions=3) == exact_kinds(texts)


@pytest.mark.parametrize(
    "texts", [["same"] * 30, [f"text {i}" for i in range(30)], ["only one"]], ids=["all", "none", "single"]
)
def test_all_or_none_may_be_duplicates(texts: list[str], limits: None, tmp_path: Path) -> None:
    assert kinds_of(texts, tmp_path, partitions=4) == exact_kinds(texts)


def test_texts_that_differ_in_one_byte_are_no_duplicates(tmp_path: Path) -> None:
    texts = ["a river", "a river ", "A river", "a riv\u00e9r", "a rive\u0301r", "a\u00a0river", "a river\n"]
    assert kinds_of(texts, tmp_path) == [KEPT] * len(texts)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_file_of_keys_is_named(damage: str, tmp_path: Path) -> None:
    """A wrong key would let a duplicate in, or drop a document, without a sign."""
    config = data_of(write_lines(tmp_path / "texts.jsonl", [f"text {i}" for i in range(30)]))
    scans = scans_of(config, tmp_path)
    entry = Artifact(scans[1], ScanFacts).manifest.files[0]
    path = Path(scans[1]) / entry.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content) if damage == "flip" else path.unlink()
    with pytest.raises(ArtifactError, match=rf"{entry.path}: file is {'damaged' if damage == 'flip' else 'missing'}"):
        find_duplicates(scans, config, f"{tmp_path}/duplicates")


def words(seed: int, number: int = 60) -> list[str]:
    numbers = random.Random(seed)
    return [f"word{numbers.randrange(1000)}" for _ in range(number)]


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of five words; the plain definition."""
    parts = text.lower().split()
    return {tuple(parts[i : i + 5]) for i in range(max(1, len(parts) - 4))}


def similarity(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def variants(seed: int) -> list[str]:
    """A text, and others that share fewer and fewer of its words."""
    return [" ".join(words(seed)[:same] + words(seed + 1000)[same:]) for same in (60, 59, 56, 45, 30, 15, 0)]


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_similar_texts_are_dropped_and_others_kept(threshold: float, tmp_path: Path) -> None:
    """Compared pair by pair; 0.15 about the threshold MinHash of 128 permutations may err."""
    texts = [text for seed in range(12) for text in variants(seed)]
    kinds = kinds_of(texts, tmp_path, near_duplicate_threshold=threshold)
    surely_dropped = surely_kept = 0
    for i, text in enumerate(texts):
        nearest = max((similarity(text, other) for other in texts[:i]), default=0.0)
        if nearest > threshold + 0.15:
            assert kinds[i] == NEAR_DUPLICATE
            surely_dropped += 1
        if nearest < threshold - 0.15:
            assert kinds[i] == KEPT
            surely_kept += 1
    assert min(surely_dropped, surely_kept) >= 12


def test_what_is_dropped_does_not_depend_on_partitions_or_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for seed in range(5) for text in variants(seed)[::-1]]
    random.Random(0).shuffle(texts)
    found = []
    for partitions in (1, 2, 9):
        folder = tmp_path / str(partitions)
        folder.mkdir()
        found.append(kinds_of(texts, folder, partitions=partitions, near_duplicate_threshold=0.6))
        monkeypatch.setattr(keys, "_RUN_DOCUMENTS", 4)
        monkeypatch.setattr(duplicates, "_RANGE_DOCUMENTS", 3)
    assert all(a == b for a, b in pairwise(found))
    assert {*found[0]} == {KEPT, NEAR_DUPLICATE}


def test_equal_texts_are_counted_apart_from_similar_ones(tmp_path: Path) -> None:
    text, other = " ".join(words(0)), " ".join(words(1))
    similar = f"{text} end"
    texts = [text, similar, other, text, similar, text.upper(), other]
    kinds = kinds_of(texts, tmp_path, partitions=3, near_duplicate_threshold=0.7)
    near, exact = NEAR_DUPLICATE, DUPLICATE
    assert kinds == [KEPT, near, KEPT, exact, exact, near, exact]


def test_similar_texts_stay_where_the_search_is_off(tmp_path: Path) -> None:
    assert kinds_of(variants(0), tmp_path) == [KEPT] * 7


def test_texts_of_a_few_words_are_similar_only_if_all_words_are_equal(tmp_path: Path) -> None:
    texts = ["a river", "a river flows", "a  River", "river", "a river runs by it"]
    assert kinds_of(texts, tmp_path, near_duplicate_threshold=0.5) == [KEPT, KEPT, NEAR_DUPLICATE, KEPT, KEPT]


@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_the_smallest_and_largest_thresholds_drop_texts_of_equal_words(threshold: float, tmp_path: Path) -> None:
    texts = [" ".join(words(0)), " ".join(words(1)), " ".join(words(0)).upper()]
    assert kinds_of(texts, tmp_path, near_duplicate_threshold=threshold) == [KEPT, KEPT, NEAR_DUPLICATE]


def test_a_threshold_that_no_signature_can_tell_from_1_is_refused() -> None:
    """Above it, 128 permutations make a single band."""
    with pytest.raises(ConfigError, match="near_duplicate_threshold"):
        parse_section(DataConfig, {"near_duplicate_threshold": 0.99})


LETTERS = {
    "Chinese": [chr(0x4E00 + i) for i in range(2000)],
    "Thai": [chr(0x0E01 + i) for i in range(46)],
    "Japanese": [*(chr(0x3041 + i) for i in range(80)), *(chr(0x5000 + i) for i in range(500))],
    "Khmer": [chr(0x1780 + i) for i in range(36)],
}


@pytest.mark.parametrize("language", LETTERS)
def test_similar_texts_are_found_in_a_language_without_spaces(language: str, tmp_path: Path) -> None:
    """A character of 200 is another one: 5 of 196 shingles of five characters differ, so 0.95 are shared."""
    numbers = random.Random(language)
    texts = ["".join(numbers.choices(LETTERS[language], k=200)) for _ in range(20)]
    changed = [f"{text[:100]}x{text[101:]}" for text in texts]
    kinds = kinds_of([*texts, *changed], tmp_path, near_duplicate_threshold=0.8)
    assert kinds == [KEPT] * 20 + [NEAR_DUPLICATE] * 20


def test_a_signature_made_in_blocks_is_that_of_all_shingles(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(words(seed, number)) for seed, number in enumerate([1, 4, 5, 6, 7, 8, 9, 12, 13, 14, 60, 61])]
    whole = [list(keys.band_keys(text, 0.8)) for text in texts]
    for block in (5, 8, 9):
        monkeypatch.setattr(keys, "_BLOCK_WORDS", block)
        assert [list(keys.band_keys(text, 0.8)) for text in texts] == whole


def test_a_dataset_with_keys_of_an_earlier_version_is_not_compared_in_silence(tmp_path: Path) -> None:
    """Its files of keys had other names; without near-duplicates nothing of them is used."""
    settings = {"near_duplicate_threshold": 0.8}
    old = prepare_data(data_of(write_lines(tmp_path / "a.jsonl", [f"text {i} of some" for i in range(60)]), **settings),
                       TOKENIZER, f"{tmp_path}/old")  # fmt: skip
    config = data_of(write_lines(tmp_path / "b.jsonl", ["new text"]), extends=old.uri, **settings)
    assert plan_partitions(config, f"{tmp_path}/plan")
    with ArtifactWriter(f"{tmp_path}/older", DatasetFacts, old.manifest.config, old.manifest.parents) as writer:
        writer.facts = old.facts
        writer.copy(old, {e.path: e.path.replace("-near-", "-band-") for e in old.manifest.files})
    with pytest.raises(ConfigError, match="its keys of near-duplicates are those of an earlier version"):
        plan_partitions(data_of(tmp_path / "b.jsonl", extends=f"{tmp_path}/older", **settings), f"{tmp_path}/plan")
