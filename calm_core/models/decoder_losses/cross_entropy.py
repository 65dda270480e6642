"""Cross-entropy of the next chunk through the decoder, from several samples."""

import math

from torch import Tensor

from calm_core.models.decoder_losses.base import DecoderLoss


class DecoderCrossEntropy(DecoderLoss):
    """-log (1/N) sum_n prod_k p(x_k | z_n) in nats a chunk, with z_n the head's samples and p the decoder.

    The model's likelihood of a chunk is E_z prod_k p(x_k | z): a sample's tokens are independent given its latent. The
    mean of N samples is unbiased, and -log is convex, so the expected loss is an upper bound of the negative
    log-likelihood, which falls towards it as N grows (the argument of Burda et al. 2016, arXiv 1509.00519, with the
    prior as the proposal). N = 1 is the cross-entropy of each sample, which rewards samples that are all alike.
    """

    name = "decoder_cross_entropy"

    def of_logits(self, logits_RNKV: Tensor, chunks_RK: Tensor, real_RK: Tensor) -> Tensor:
        samples = logits_RNKV.shape[1]
        true_RNK1 = chunks_RK.unsqueeze(1).unsqueeze(-1).expand(-1, samples, -1, -1)
        log_p_RNK = logits_RNKV.gather(-1, true_RNK1).squeeze(-1) - logits_RNKV.logsumexp(-1)
        log_p_RN = log_p_RNK.masked_fill(~real_RK.unsqueeze(1), 0).sum(-1)
        return math.log(samples) - log_p_RN.logsumexp(1)
