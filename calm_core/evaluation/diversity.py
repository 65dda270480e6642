"""How varied the texts are that a model writes: n-grams of tokens within and over texts, and BLEU between them."""

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from sacrebleu import BLEU

from calm_core.errors import CalmError
from calm_core.generation.text import Written
from calm_core.store.facts import TextSample, WrittenTexts

LONGEST = 4  # tokens of an n-gram


def measure(
    prompts: Sequence[str], written: Sequence[Written], temperature: float, sampler: str | None = None
) -> WrittenTexts:
    """What a model has written at one temperature, and how varied that is.

    Args:
        prompts: What was continued.
        written: The continuation of each.
        temperature: At which they were written.
        sampler: The way to it, where there are several.

    Raises:
        CalmError: There are more or fewer continuations than prompts.
    """
    if len(prompts) != len(written):
        raise CalmError(f"{len(written)} texts are not those of {len(prompts)} prompts")
    tokens, texts = [one.tokens for one in written], [one.text for one in written]
    return WrittenTexts(
        temperature=temperature,
        sampler=sampler,
        distinct={str(n): share for n in range(1, LONGEST + 1) if (share := distinct(tokens, n)) is not None},
        repetition=repetition(tokens),
        self_bleu=self_bleu(texts),
        texts=[TextSample(prompt=prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)],
    )


def distinct(texts: Iterable[Sequence[int]], n: int) -> float | None:
    """Distinct-n: different n-grams of all texts, as a share of all of them (Li et al. 2016, arXiv 1510.03055).

    Returns:
        None where every text is shorter than n tokens.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Iterable[Sequence[int]]) -> float:
    """Share of 4-grams that stood in the same text before (Welleck et al. 2020, arXiv 1908.04319); 0 where none is."""
    grams = [list(_grams(text, LONGEST)) for text in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(own)) for own in grams) / total if total else 0.0


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each text with all others as its references, 0 to 100 (Zhu et al. 2018, arXiv 1802.01886).

    Words and punctuation are taken apart as in mteval-v13a, so that models with other tokenizers can be compared.
    Counts of zero are smoothed exponentially. Of a text of fewer than four words only the shorter n-grams count.

    Returns:
        None of fewer than two texts.
    """
    if len(texts) < 2:
        return None
    bleu = BLEU(tokenize="13a", smooth_method="exp", effective_order=True)
    scores = (bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts))
    return min(fmean(scores), 100.0)  # equal texts have 100 and a rounding error


def _grams(text: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(text[first:] for first in range(n)), strict=False)
