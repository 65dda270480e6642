"""The Brier score of decoded samples, which can be differentiated."""

import torch
from torch import Tensor

from calm_core.config import DecoderBrierConfig
from calm_core.models.decoder_losses.base import DecoderLoss


class DecoderBrier(DecoderLoss):
    """1 - (2 P(y) - sum_x P(x)^2), estimated without bias from N samples and averaged over a chunk's real tokens.

    P(x) = E_z p(x | z) is the model's distribution of a token, p(. | z) the decoder's given a sample z. With
    independent z_n, E p(y | z_n) = P(y), and for n != m E sum_x p(x | z_n) p(x | z_m) = sum_x P(x)^2, since the
    expectation of a product of independent factors is that of its factors. So

        1 - (2/N) sum_n p(y | z_n) + 1/(N (N-1)) sum_{n != m} sum_x p(x | z_n) p(x | z_m)

    is the expected Brier score 1 - 2 P(y) + sum_x P(x)^2 = sum_x (P(x) - 1{x = y})^2, which is strictly proper. Each
    p(. | z_n) is a soft one-hot vector in the place of the decoded token in BrierLM's estimate.

    Of the first n tokens together (`joint`) P(x_1..x_n) = E_z prod_k p(x_k | z), and the sum over all x_1..x_n of a
    product over k is the product of sums: p(y | z_n) becomes prod_k p(y_k | z_n), and sum_x p(x | z_n) p(x | z_m)
    becomes prod_k sum_x p(x_k | z_n) p(x_k | z_m). That is 1 - Brier-n, averaged over n = 1..K.
    """

    name = "decoder_brier_loss"
    config: DecoderBrierConfig

    def of_logits(self, logits_RNKV: Tensor, chunks_RK: Tensor, real_RK: Tensor) -> Tensor:
        samples = logits_RNKV.shape[1]
        p_RKNV = logits_RNKV.softmax(-1).transpose(1, 2)
        true_RKN1 = chunks_RK.unsqueeze(-1).unsqueeze(-1).expand(-1, -1, samples, -1)
        hit_RKN = p_RKNV.gather(-1, true_RKN1).squeeze(-1)
        both_RKNN = p_RKNV @ p_RKNV.transpose(-1, -2)
        if self.config.joint:
            hit_RKN, both_RKNN, real_RK = hit_RKN.cumprod(1), both_RKNN.cumprod(1), real_RK.cumprod(1).bool()
        itself = torch.eye(samples, dtype=torch.bool, device=both_RKNN.device)
        pairs_RK = both_RKNN.masked_fill(itself, 0).sum((-1, -2)) / (samples * (samples - 1))
        loss_RK = (1 - 2 * hit_RKN.mean(-1) + pairs_RK).masked_fill(~real_RK, 0)
        return loss_RK.sum(1) / real_RK.sum(1).clamp_min(1)
