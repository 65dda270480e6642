"""How well an autoencoder's latents carry text: the ceiling of every model that is trained on them.

Suffixes of names as in `calm_core.models`, and C for the chunks that count.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from calm_core.errors import CalmError
from calm_core.models.autoencoders.base import Autoencoder, to_chunks
from calm_core.models.noise import SequenceNoise
from calm_core.store.facts import Accuracy, AutoencoderQuality, FrequencyAccuracy, NoiseAccuracy

NOISE_SCALES = tuple(2.0**power for power in range(-4, 7))
"""Standard deviations of the noise on the mean latent; trained posteriors have 0.05 to 0.5."""
NOISE_TOKENS = 2**14
"""Of the first sequences, one at least, that are decoded at each scale: a share of these is right to half a percent."""
BROKEN = 0.5
"""The curve ends with the first scale at which fewer of the tokens than this come back."""
ACTIVE_VARIANCE = 0.01
"""Of a dimension's mean over chunks, above which it counts as active (Burda et al. 2016, arXiv 1509.00519)."""
STD_LEVELS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

_POWERS = tuple(10**power for power in range(16))  # more than any text has


@torch.no_grad()
def measure(
    autoencoder: Autoencoder,
    batches: Iterable[tuple[Tensor, SequenceNoise]],
    *,
    pad_id: int,
    train_counts_V: Tensor,
) -> AutoencoderQuality:
    """The quality of an autoencoder on held-out text; memory is that of a batch, whatever the number of batches.

    A chunk counts if one of its tokens is real, and by its real tokens alone. What comes back from sampled latents is
    what `reconstruct` gives with the same noise.

    Args:
        autoencoder: Frozen, of any kind.
        batches: Sequences int64 [B, T] on the autoencoder's device, T a multiple of K, and their noise.
        pad_id: The token that is not real.
        train_counts_V: int64, how often each token occurs in training text.

    Raises:
        CalmError: No token is real.
    """
    mean, sampled = _Correct(), _Correct()
    noisy = {scale: _Correct() for scale in NOISE_SCALES}
    moments, stds, frequencies = _Moments(), _Quantiles(), _Frequencies(train_counts_V)
    sequences = 0
    for tokens_BT, noise in batches:
        chunks_BPK = to_chunks(tokens_BT, autoencoder.config.chunk_size)
        real_BPK = chunks_BPK != pad_id
        counted_BP = real_BPK.any(-1)
        posterior = autoencoder.encode(chunks_BPK)
        latents_BPL = posterior.sample(noise.normal(*posterior.mean.shape[1:]))
        before_BPW = autoencoder.before(chunks_BPK)
        hits_BPK = autoencoder.decode(latents_BPL, before_BPW) == chunks_BPK
        sampled.add(hits_BPK, real_BPK)
        frequencies.add(chunks_BPK[real_BPK], hits_BPK[real_BPK])
        mean.add(autoencoder.decode(posterior.mean, before_BPW) == chunks_BPK, real_BPK)
        first = slice(max(max(NOISE_TOKENS // tokens_BT.shape[1], 1) - sequences, 0))
        sequences += len(tokens_BT)
        mean_BPL = posterior.mean[first]
        # The same noise at every scale: the curve then tells scales apart, and not draws.
        normal_BPL = noise.rows(range(len(mean_BPL))).normal(*mean_BPL.shape[1:])
        for scale, correct in noisy.items():
            decoded_BPK = autoencoder.decode(mean_BPL + scale * normal_BPL, before_BPW[first])
            correct.add(decoded_BPK == chunks_BPK[first], real_BPK[first])
        moments.add(posterior.mean[counted_BP])
        stds.add(posterior.std[counted_BP])
    if not mean.tokens:
        raise CalmError("no token of the held-out text is real, so nothing tells how an autoencoder does")
    return AutoencoderQuality(
        mean=mean.accuracy(),
        sampled=sampled.accuracy(),
        under_noise=_until_broken(noisy),
        latent_size=autoencoder.config.latent_size,
        active_dimensions=int((moments.variance_L > ACTIVE_VARIANCE).sum()),
        latent_std={str(level): stds.at(level) for level in STD_LEVELS},
        by_frequency=frequencies.accuracies(),
    )


def _until_broken(noisy: dict[float, "_Correct"]) -> list[NoiseAccuracy]:
    curve = []
    for scale, correct in noisy.items():
        if not correct.tokens:  # the first sequences are padding
            break
        accuracy = correct.accuracy()
        curve.append(NoiseAccuracy(scale=scale, tokens=accuracy.tokens, chunks=accuracy.chunks))
        if accuracy.tokens < BROKEN:
            break
    return curve


class _Correct:
    """Counts what came back."""

    def __init__(self) -> None:
        self.tokens = self.chunks = 0
        self._correct_tokens = self._correct_chunks = 0

    def add(self, hits_BPK: Tensor, real_BPK: Tensor) -> None:
        """Take in which tokens came back, and which are real; both bool."""
        counted_BP = real_BPK.any(-1)
        whole_BP = (hits_BPK | ~real_BPK).all(-1)
        sums = (real_BPK.sum(), counted_BP.sum(), (hits_BPK & real_BPK).sum(), (whole_BP & counted_BP).sum())
        tokens, chunks, correct_tokens, correct_chunks = torch.stack(sums).tolist()
        self.tokens += tokens
        self.chunks += chunks
        self._correct_tokens += correct_tokens
        self._correct_chunks += correct_chunks

    def accuracy(self) -> Accuracy:
        """The shares so far."""
        return Accuracy(tokens=self._correct_tokens / self.tokens, chunks=self._correct_chunks / self.chunks)


class _Moments:
    """Variance of each dimension over all chunks, batch by batch (Chan, Golub and LeVeque 1979).

    Sums of squares would lose it where a mean is large beside its variance.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean_L: Tensor | float = 0.0
        self._squares_L = torch.zeros(())  # sum of squared distances from the mean

    def add(self, values_CL: Tensor) -> None:
        """Take in the values of some chunks."""
        values_CL, count = values_CL.double().cpu(), len(values_CL)
        if not count:
            return
        mean_L = values_CL.mean(0)
        apart_L = mean_L - self._mean_L
        total = self._count + count
        self._squares_L = (
            self._squares_L + (values_CL - mean_L).square().sum(0) + apart_L.square() * (self._count * count / total)
        )
        self._mean_L = self._mean_L + apart_L * (count / total)
        self._count = total

    @property
    def variance_L(self) -> Tensor:
        return self._squares_L / self._count


class _Quantiles:
    """Quantiles of positive fp32 numbers of any size, in bounded memory: a histogram over their leading 20 bits.

    The bits of such numbers are in the order of the numbers. 11 bits of the mantissa are left, so a quantile is off by
    at most 2^-12 of itself.
    """

    _BITS = 12  # that are left out

    def __init__(self) -> None:
        self._counts = torch.zeros(2 ** (31 - self._BITS), dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Take in numbers, fp32."""
        bits = values.float().contiguous().view(torch.int32).flatten() >> self._BITS
        self._counts += torch.bincount(bits, minlength=len(self._counts)).cpu()

    def at(self, level: float) -> float:
        """The smallest number that this share of all numbers does not exceed."""
        cumulated = self._counts.cumsum(0)
        place = int(torch.searchsorted(cumulated, max(math.ceil(level * int(cumulated[-1])), 1)))
        middle = (place << self._BITS) + (1 << (self._BITS - 1))
        return float(torch.tensor(middle, dtype=torch.int32).view(torch.float32))


class _Frequencies:
    """Accuracy by how often a token occurs in training text: never, 1 to 9 times, 10 to 99 times, ..."""

    def __init__(self, train_counts_V: Tensor) -> None:
        counts_V = train_counts_V.cpu()
        self._bucket_V = torch.bucketize(counts_V, torch.tensor(_POWERS), right=True)
        self._tokens = torch.zeros(len(_POWERS) + 1, dtype=torch.int64)
        self._correct = torch.zeros_like(self._tokens)

    def add(self, tokens_R: Tensor, hits_R: Tensor) -> None:
        """Take in real tokens, and whether they came back."""
        bucket_R, hits_R = self._bucket_V[tokens_R.cpu()], hits_R.cpu()
        self._tokens += torch.bincount(bucket_R, minlength=len(self._tokens))
        self._correct += torch.bincount(bucket_R[hits_R], minlength=len(self._correct))

    def accuracies(self) -> list[FrequencyAccuracy]:
        """One for each power of ten that has held-out tokens."""
        return [
            FrequencyAccuracy(
                least=10 ** (bucket - 1) if bucket else 0,
                most=10**bucket - 1,
                tokens=tokens,
                accuracy=correct / tokens,
            )
            for bucket, (tokens, correct) in enumerate(zip(self._tokens.tolist(), self._correct.tolist(), strict=True))
            if tokens
        ]
