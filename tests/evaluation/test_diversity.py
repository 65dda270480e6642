"""How varied texts are, counted by hand."""

import math
from itertools import chain

import pytest

from calm_core.errors import CalmError
from calm_core.evaluation import diversity
from calm_core.generation.text import Written
from calm_core.store.facts import WrittenTexts


def measured(*texts: str) -> WrittenTexts:
    """A word is a token."""
    words = sorted({*chain.from_iterable(text.split() for text in texts)})
    written = [Written(text, [words.index(word) for word in text.split()]) for text in texts]
    return diversity.measure(["a prompt"] * len(texts), written, 0.5)


def test_counts_of_two_texts() -> None:
    """The first has 6, 5, 4, 3 n-grams, 2 different ones for each n; the second 3, 2, 1, 0; new are c, bc and abc."""
    found = measured("a b a b a b", "a b c")
    assert found.distinct == {"1": 3 / 9, "2": 3 / 7, "3": 3 / 5, "4": 2 / 3}
    assert found.repetition == pytest.approx(1 / 3)  # of abab, baba, abab the third one
    assert found.temperature == 0.5
    assert [(one.prompt, one.text) for one in found.texts] == [("a prompt", "a b a b a b"), ("a prompt", "a b c")]


def test_repetition_is_within_a_text_and_distinct_over_all() -> None:
    found = measured("a b c d e", "a b c d e")
    assert found.repetition == 0
    assert found.distinct == {str(n): 0.5 for n in range(1, 5)}


def test_self_bleu_by_hand() -> None:
    """Against the other text, of 6 words 5 are found, of 5 pairs 3, of 4 triples 2, of 3 quadruples 1; equally long."""
    found = measured("the cat sat on the mat", "the cat sat on a mat")
    # The second text has only one "the": of the first one's two, one counts. Both texts see the same counts.
    bleu = 100 * math.prod((5 / 6, 3 / 5, 2 / 4, 1 / 3)) ** (1 / 4)
    assert found.self_bleu == pytest.approx(bleu)


def test_a_text_is_compared_with_all_others() -> None:
    """The best of several references counts, and the closest one's length."""
    alike, other = "one two three four five", "six seven eight nine ten"
    found = measured(alike, other, alike, other)
    assert found.self_bleu == pytest.approx(100)
    assert measured(alike, other).self_bleu == 0


def test_punctuation_is_a_word_of_its_own() -> None:
    """Of 6 words of the first text the other has 5; it has all 5 of the second one, which is a word shorter."""
    found = measured("the old port they say.", "the old port they say")
    first = 100 * math.prod((5 / 6, 4 / 5, 3 / 4, 2 / 3)) ** (1 / 4)
    assert found.self_bleu == pytest.approx((first + 100 * math.exp(1 - 6 / 5)) / 2)


def test_equal_texts_have_100_and_not_a_rounding_error_more() -> None:
    assert measured(*["the old port trades with the river"] * 7).self_bleu == pytest.approx(100)


@pytest.mark.parametrize("texts", [(), ("",), ("", ""), ("a",), ("a b c", "")])
def test_texts_with_nothing_to_count_give_no_number_rather_than_a_guess(texts: tuple[str, ...]) -> None:
    found = measured(*texts)
    longest = max((len(text.split()) for text in texts), default=0)
    assert found.distinct == {str(n): 1.0 for n in range(1, longest + 1)}
    assert found.repetition == 0
    assert found.self_bleu == (0 if len(texts) > 1 else None)


def test_a_text_of_one_word_can_be_like_another() -> None:
    """Shorter than BLEU's longest n-gram: those that it has count."""
    assert measured("yes", "yes").self_bleu == pytest.approx(100)


def test_texts_without_their_prompts_are_refused() -> None:
    with pytest.raises(CalmError, match="1 texts are not those of 2 prompts"):
        diversity.measure(["a", "b"], [Written("c", [0])], 1.0)
