"""Text from a language model: prompts of any length in one batch, temperature, stop strings, streaming, seeds."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from calm_core.config.evaluation import SamplerName
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import CalmError
from calm_core.generation.arguments import (
    MAX_NEW_TOKENS,
    seeds_of,
    stop_strings_of,
    texts_of,
    whole_number,
)
from calm_core.generation.continuation import Continuation
from calm_core.generation.samplers.make import name_for, sampler_for
from calm_core.generation.sampling import BUDGET, Sampling
from calm_core.generation.temperature import FREE, BudgetExceeded, TextSoFar
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.backbone import Backbone, Branches
from calm_core.models.calm import Calm
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.models.transformer import Transformer
from calm_core.store.facts import Packing

_POSITIONS_AT_ONCE = 2**16  # tokens of a batch, whose keys and values are held
MAX_PROMPT_TOKENS = 2**17  # the time to read a prompt grows with the square of its length


class NextChunk(ABC):
    """A language model as the generator needs it: K tokens at a time, K = 1 for a token-level one."""

    backbone: Backbone
    chunk_size: int
    reads: int = 0
    """How many tokens before a chunk `choose` is told."""

    @abstractmethod
    def embed(self, chunks: Tensor) -> Tensor:
        """Backbone inputs [..., D] of int64 chunks [..., K]."""

    @abstractmethod
    def choose(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        """The next chunk after each state, int64 [B, K], which keeps the tokens that have begun it.

        Every row draws its own noise, as much as its own state and beginning ask for.

        Raises:
            BudgetExceeded: The exact sampler found none.
            CalmError: The sampler does not go with the model.
        """

    def sampler_name(self, sampling: Sampling) -> SamplerName | None:  # most models need none
        """Of the sampler that `choose` takes to a temperature below 1; None where there are no several."""
        return None


class CalmChunks(NextChunk):
    """Chunks of a CALM model.

    A prompt that ends inside a chunk is continued by samples of that chunk that begin with its tokens; when all samples
    begin otherwise, the first one is taken and its beginning replaced.
    """

    def __init__(self, calm: Calm, autoencoder: Autoencoder) -> None:
        self.calm = calm
        self.autoencoder = autoencoder
        self.backbone = calm.transformer
        self.chunk_size = calm.chunk_size
        self.reads = autoencoder.reads

    def embed(self, chunks: Tensor) -> Tensor:
        return self.calm.embed(chunks)

    def sampler_name(self, sampling: Sampling) -> SamplerName | None:
        return name_for(self.calm.mlp_generator, self.autoencoder, sampling) if sampling.temperature < 1 else None

    def choose(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        sampler = sampler_for(self.calm.mlp_generator, self.autoencoder, sampling)(self.calm, self.autoencoder)
        begun_B = (text.begun_BK != FREE).any(1)
        chunk_BK = torch.empty_like(text.begun_BK)
        if len(rows := begun_B.nonzero().squeeze(1)):
            chunk_BK[rows] = sampler.finish(hidden_BD[rows], text.rows(rows), noise.rows(rows.tolist()), sampling)
        if len(rows := (~begun_B).nonzero().squeeze(1)):
            chunk_BK[rows] = sampler.draw(hidden_BD[rows], text.rows(rows), noise.rows(rows.tolist()), sampling)
        return chunk_BK


class TransformerTokens(NextChunk):
    """Tokens of a token-level Transformer; its temperature divides the logits and is exact."""

    def __init__(self, transformer: Transformer) -> None:
        self.transformer = transformer
        self.backbone = transformer.transformer
        self.chunk_size = 1

    def embed(self, chunks: Tensor) -> Tensor:
        return self.transformer.embed(chunks.squeeze(-1))

    def choose(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        if sampling.named not in (None, "exact"):
            raise CalmError(
                f"sampler {sampling.named}: is of models that know no probabilities; a Transformer knows them, and "
                "reaches every temperature exactly: leave it out"
            )
        return self.transformer.next_token(hidden_BD, noise.uniform(1), sampling.temperature).token_RS


class Written(NamedTuple):
    """A continuation, or a piece of one.

    Attributes:
        text: As it is handed out.
        tokens: That the model wrote for it, without one that ends the text. Some may stand for characters that are held
            back, or cut off by a stop string.
    """

    text: str
    tokens: list[int]


@dataclass
class _Text:
    """One continuation, as far as it is written.

    Attributes:
        begun: Tokens of the prompt in the chunk that is written first.
        continuation: What the new tokens add to the prompt's text.
        length: How many new tokens there are.
        held: Characters that are not handed out yet, because they may begin a stop string.
    """

    begun: list[int]
    continuation: Continuation
    length: int = 0
    held: str = ""
    ended: bool = False


class TextGenerator:
    """Continues prompts.

    Equal seeds give equal text for a prompt, whatever else is asked for beside it.

    Args:
        model: What writes.
        tokenizer: What its tokens mean, and which of them begins a document, if any does.
        packing: Of the text that the model was trained on: it tells how a document begins.
    """

    def __init__(self, model: NextChunk, tokenizer: Tokenizer, packing: Packing = "documents") -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.packing = packing
        self.device = next(model.backbone.parameters()).device

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
    ) -> list[str]:
        """The continuation of each prompt, without the prompt.

        Args:
            prompts: Texts; an empty one starts a new document.
            max_new_tokens: Tokens at most; an end-of-text token ends it before.
            sampling: Temperature and how it is reached; at temperature 1 unless told.
            seed: Of all noise, 0 to MAX_SEED: one for each prompt, or the same for all of them, and then equal prompts
                get equal texts.
            stop: The text ends before the first of these strings.

        Raises:
            CalmError: A prompt or setting is none or out of range, or the exact sampler's budget ran out.
        """
        written = self.write(prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop)
        return [one.text for one in written]

    def write(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
    ) -> list[Written]:
        """The continuation of each prompt with its tokens; arguments and errors as in `generate`."""
        prompts = texts_of("prompt", prompts)
        texts = [""] * len(prompts)
        tokens: list[list[int]] = [[] for _ in prompts]
        for number, piece in self.pieces(
            prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop
        ):
            texts[number] += piece.text
            tokens[number] += piece.tokens
        return [Written(text, own) for text, own in zip(texts, tokens, strict=True)]

    def stream(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[tuple[int, str]]:
        """Pieces of the continuations as they are written, each with the number of its prompt.

        A piece holds whole characters, and nothing that may turn out to begin a stop string. Arguments and errors as in
        `generate`; the arguments are checked at once.
        """
        pieces = self.pieces(prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop)
        return ((number, piece.text) for number, piece in pieces if piece.text)

    def pieces(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[tuple[int, Written]]:
        """What `stream` gives, a piece for each chunk, with its tokens; there may be no text that can be handed out."""
        prompts = texts_of("prompt", prompts)
        seeds, stop = seeds_of(seed, len(prompts)), stop_strings_of(stop)
        length = whole_number("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS)
        return self._pieces(prompts, length, sampling or Sampling(), seeds, stop)

    @torch.no_grad()
    def _pieces(
        self, prompts: Sequence[str], max_new_tokens: int, sampling: Sampling, seeds: Sequence[int], stop: Sequence[str]
    ) -> Iterator[tuple[int, Written]]:
        encoded = [self._encoded(prompt, number) for number, prompt in enumerate(prompts, 1)]
        for numbers in _groups([len(tokens) + max_new_tokens for tokens in encoded]):
            noise = SequenceNoise([derive_seed(seeds[i], "generate") for i in numbers], self.device)
            for row, piece in self._continue([encoded[i] for i in numbers], max_new_tokens, sampling, noise, stop):
                yield numbers[row], piece

    def _continue(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        sampling: Sampling,
        noise: SequenceNoise,
        stop: Sequence[str],
    ) -> Iterator[tuple[int, Written]]:
        """Pieces of the continuations of some prompts, all in one batch."""
        texts, hidden_BD, before_BW, branches = self._read(prompts)
        living = list(range(len(prompts)))  # the prompt of each row of the batch; a text that has ended leaves it
        while True:
            text = TextSoFar(before_BW, self._begun([texts[i] for i in living]))
            chunk_BK = self._next_chunks(hidden_BD, text, noise.rows(living), sampling)
            before_BW = torch.cat([before_BW, chunk_BK], dim=1)[:, chunk_BK.shape[1] :]
            for i, chunk in zip(living, chunk_BK.tolist(), strict=True):
                yield i, self._write(texts[i], chunk, max_new_tokens, stop)
            kept = [row for row, i in enumerate(living) if not texts[i].ended]
            if not kept:
                return
            if len(kept) < len(living):  # else keys and values would be copied for nothing
                living = [living[row] for row in kept]
                index = torch.tensor(kept, device=self.device)
                chunk_BK, before_BW, branches = chunk_BK[index], before_BW[index], branches.rows(index)
            hidden_BQD, branches = self.model.backbone.branch(self.model.embed(chunk_BK.unsqueeze(1)), branches)
            hidden_BD = hidden_BQD[:, 0]

    def _begun(self, texts: Sequence[_Text]) -> Tensor:
        """The tokens that each text's next chunk has already, then FREE, int64 [B, K]."""
        size = self.model.chunk_size
        return torch.tensor([text.begun + [FREE] * (size - len(text.begun)) for text in texts], device=self.device)

    def _next_chunks(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        try:
            return self.model.choose(hidden_BD, text, noise, sampling)
        except BudgetExceeded:
            budget = sampling.budget or BUDGET
            raise CalmError(
                f"temperature {sampling.temperature}: no chunk was accepted within {budget:,} draws; "
                "raise the budget or the temperature, or take another sampler (without --exact, budget 0)"
            ) from None

    def _read(self, prompts: Sequence[list[int]]) -> tuple[list[_Text], Tensor, Tensor, Branches]:
        """The state after the whole chunks of each prompt, their last tokens, [B, W], and their keys and values.

        Shorter prompts are filled up at their ends, where nothing that counts can see it.
        """
        size = self.model.chunk_size
        started = [self._start(tokens) for tokens in prompts]
        whole = [tokens for tokens, _ in started]
        texts = [
            _Text(begun, Continuation(self.tokenizer, tokens))
            for (_, begun), tokens in zip(started, prompts, strict=True)
        ]
        longest = max(len(tokens) for tokens in whole)
        filled = [tokens + [self.tokenizer.pad_id] * (longest - len(tokens)) for tokens in whole]
        chunks_BPK = torch.tensor(filled, device=self.device).unflatten(1, (-1, size))
        hidden_BPD, prefix = self.model.backbone(self.model.embed(chunks_BPK))
        last_B = torch.tensor([len(tokens) // size - 1 for tokens in whole], device=self.device)
        row_B = torch.arange(len(prompts), device=self.device)
        reads = self.model.reads
        read = [[FREE] * max(reads - len(tokens), 0) + tokens[max(len(tokens) - reads, 0) :] for tokens in whole]
        before_BW = torch.tensor(read, dtype=torch.int64, device=self.device)
        return texts, hidden_BPD[row_B, last_B], before_BW, Branches(last_B.unsqueeze(1), prefix)

    def _encoded(self, prompt: str, number: int) -> list[int]:
        tokens = self.tokenizer.encode(prompt)
        if len(tokens) > MAX_PROMPT_TOKENS:
            raise CalmError(
                f"prompt {number}: has {len(tokens):,} tokens, and at most {MAX_PROMPT_TOKENS:,} are read; give its end"
            )
        return tokens

    def _start(self, prompt: list[int]) -> tuple[list[int], list[int]]:
        """The tokens of a prompt as the start of a document: its whole chunks, and what it has begun of the next one.

        Of packed documents, one follows the chunk that ends the one before it. Contiguous ones begin anywhere in a
        chunk; so the prompt ends with a chunk, and more of the token that begins it fill the chunk before it.
        """
        size, bos_id = self.model.chunk_size, self.tokenizer.bos_id
        tokens = ([] if bos_id is None else [bos_id]) + prompt
        if self.packing == "contiguous" and bos_id is not None:
            return [bos_id] * (-len(tokens) % size) + tokens, []
        boundary = [self.tokenizer.eos_id] + [self.tokenizer.pad_id] * (size - 1)
        kept = len(tokens) // size * size
        return boundary + tokens[:kept], tokens[kept:]

    def _write(self, text: _Text, chunk: list[int], max_new_tokens: int, stop: Sequence[str]) -> Written:
        """Append a chunk; returns its tokens, and the characters that are certain now."""
        new, text.begun = chunk[len(text.begun) :], []
        ends = (self.tokenizer.eos_id, self.tokenizer.bos_id)  # of contiguous documents the next one's start ends one
        if (end := next((i for i, token in enumerate(new) if token in ends), None)) is not None:
            new, text.ended = new[:end], True
        new = new[: max_new_tokens - text.length]
        text.length += len(new)
        text.ended = text.ended or text.length == max_new_tokens
        text.held += text.continuation.add(new)
        if text.ended:
            text.held += text.continuation.finish()
        places = [place for string in stop if (place := text.held.find(string)) >= 0]
        if places:
            piece, text.ended = text.held[: min(places)], True
        else:
            piece = text.held if text.ended else _certain(text.held, stop)
        text.held = text.held[len(piece) :]
        return Written(piece, new)


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts of these lengths, those of like length together, in groups that one batch can hold."""
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[number] > _POSITIONS_AT_ONCE:  # as long as its longest, this one
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _certain(written: str, stop: Sequence[str]) -> str:
    """A text without its end, as far as that may begin a stop string."""
    held = max(
        (n for string in stop for n in range(1, len(string)) if written.endswith(string[:n])),
        default=0,
    )
    return written[: len(written) - held]
