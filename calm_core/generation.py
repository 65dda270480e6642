"""Text from a CALM model: prompts of any length, a temperature without likelihoods, seeds per prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from calm_core.data.tokenizer import Tokenizer
from calm_core.errors import CalmError
from calm_core.models.autoencoder import Autoencoder
from calm_core.models.backbone import KeyValues
from calm_core.models.calm import Calm
from calm_core.noise import SequenceNoise, derive_seed

_PREFIX_SAMPLES = 256  # chunks that are drawn to continue a prompt that ends inside a chunk


def temperature_weights(equal_BSS: Tensor, temperature: float) -> Tensor:
    """Probability of choosing each sample, so that a chunk seen c times has weight C(c, 1/T) (arXiv 2510.27688).

    C is the binomial coefficient; for a 1/T that is no integer it is continued by Gamma functions, the one smooth
    continuation that keeps C(c, c) = 1 and grows with c. A chunk seen less than 1/T times does not qualify; if none
    does, 1/T is lowered by one until one does, down to 1.

    Args:
        equal_BSS: bool, which samples are the same chunk; samples that are excluded equal nothing, not even themselves.
        temperature: In (0, 1].

    Returns:
        fp64 [B, S], rows sum to one; rows without any sample are zero.
    """
    count_BS = equal_BSS.sum(-1).double()
    most_B1 = count_BS.amax(-1, keepdim=True)
    n_B1 = 1 / temperature - (1 / temperature - most_B1).ceil().clamp_min(0)
    n_B1 = n_B1.clamp_min(1.0)
    log_weight = torch.lgamma(count_BS + 1) - torch.lgamma(n_B1 + 1) - torch.lgamma((count_BS - n_B1).clamp_min(0) + 1)
    log_weight = (log_weight - count_BS.log()).masked_fill(count_BS < n_B1, -torch.inf)  # one share for each copy
    weights = (log_weight - log_weight.amax(-1, keepdim=True)).exp().nan_to_num(0.0)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)


class TextGenerator:
    """Continues prompts.

    Equal seeds give equal text for a prompt, whatever else is asked for beside it.
    """

    def __init__(self, calm: Calm, autoencoder: Autoencoder, tokenizer: Tokenizer) -> None:
        self.calm = calm
        self.autoencoder = autoencoder
        self.tokenizer = tokenizer
        self.chunk_size = calm.chunk_size
        self.device = next(calm.parameters()).device

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        temperature_samples: int = 200,
    ) -> list[str]:
        """The continuation of each prompt, without the prompt.

        Args:
            prompts: Texts; an empty one starts a new document.
            max_new_tokens: Tokens at most; an end-of-text token ends it before.
            temperature: In (0, 1]; below 1, each chunk is chosen among `temperature_samples` samples.
            seed: Of all noise of each prompt.
            temperature_samples: S of the batch approximation.

        Raises:
            CalmError: A setting is out of range.
        """
        if not 0 < temperature <= 1:
            raise CalmError(f"temperature must be above 0 and at most 1 (got {temperature})")
        if max_new_tokens < 1 or temperature_samples < 1:
            raise CalmError("max_new_tokens and temperature_samples must be at least 1")
        samples = temperature_samples if temperature < 1 else 1
        return [self._continue(prompt, max_new_tokens, temperature, samples, seed) for prompt in prompts]

    @torch.no_grad()
    def _continue(self, prompt: str, max_new_tokens: int, temperature: float, samples: int, seed: int) -> str:
        noise = SequenceNoise([derive_seed(seed, "generate")], self.device)
        tokens = self.tokenizer.encode(prompt)
        whole = len(tokens) // self.chunk_size * self.chunk_size
        begun = tokens[whole:]  # the start of a chunk that the model has to finish
        # A document follows the chunk that ends the one before it.
        boundary = [self.tokenizer.eos_id] + [self.tokenizer.pad_id] * (self.chunk_size - 1)
        chunks = torch.tensor([boundary + tokens[:whole]], device=self.device).unflatten(1, (-1, self.chunk_size))
        past: list[KeyValues] | None = None
        written: list[int] = []
        while len(written) < max_new_tokens:
            hidden_BPD, past = self.calm.transformer(self.calm.embed(chunks), past)
            chunk = self._next_chunk(hidden_BPD[0, -1], noise, temperature, samples, begun)
            new = chunk[len(begun) :]
            begun = []
            if self.tokenizer.eos_id in new:
                written += new[: new.index(self.tokenizer.eos_id)]
                break
            written += new
            chunks = torch.tensor([[chunk]], device=self.device)
        return self.tokenizer.decode(written[:max_new_tokens])

    def _next_chunk(
        self, hidden_D: Tensor, noise: SequenceNoise, temperature: float, samples: int, begun: list[int]
    ) -> list[int]:
        """One chunk; the tokens that are already there are kept by rejecting samples that start otherwise.

        When all samples start otherwise, the first one is taken and its start replaced.
        """
        number = max(samples, _PREFIX_SAMPLES) if begun else samples
        uniform = self.calm.sampling_noise(noise, number)[0]
        chunks_SK = self.autoencoder.decode(self.calm.sample(hidden_D, uniform))
        choice = noise.uniform(1).double()
        fits_S = (chunks_SK[:, : len(begun)] == torch.tensor(begun, device=self.device, dtype=torch.int64)).all(-1)
        if not fits_S.any():
            return begun + [int(token) for token in chunks_SK[0, len(begun) :]]
        if number == 1:
            return [int(token) for token in chunks_SK[0]]
        equal_SS = (chunks_SK.unsqueeze(0) == chunks_SK.unsqueeze(1)).all(-1) & fits_S & fits_S.unsqueeze(1)
        cumulative = temperature_weights(equal_SS.unsqueeze(0), temperature).cumsum(-1)
        chosen = int(torch.searchsorted(cumulative, choice, right=True).clamp_max(number - 1))
        return [int(token) for token in chunks_SK[chosen]]
