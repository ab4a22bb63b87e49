"""The vocabulary cut over the tensor-parallel ranks: embedding and cross-entropy.

No rank ever holds the logits of the whole vocabulary. The softmax needs two numbers a token from
everyone: the largest logit, then the sum of exponentials together with the target's logit, which
one rank has (Shoeybi et al. 2019, arXiv:1909.08053, section 3). v = V / W, of this rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_playground.scratch.token_exchange import Exchange, scatter_tokens

__all__ = ["VocabularyCrossEntropy", "VocabularyEmbedding"]


class VocabularyEmbedding(nn.Module):
    """Rows of the table that lie on this rank; the others' tokens get 0, and the sum is right."""

    def __init__(self, weight: nn.Parameter, exchange: Exchange) -> None:
        super().__init__()
        self.weight = weight
        self.exchange = exchange

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] int64, the same on all ranks -> this rank's tokens [n, D]."""
        v = self.weight.shape[0]
        local_N = tokens_BT.flatten() - self.exchange.axis.index * v
        elsewhere_N = (local_N < 0) | (local_N >= v)
        x_ND = F.embedding(local_N.masked_fill(elsewhere_N, 0), self.weight)
        x_ND = x_ND.masked_fill(elsewhere_N[:, None], 0).float()
        return scatter_tokens(x_ND, self.exchange)


class VocabularyCrossEntropy(nn.Module):
    """The sum over all tokens of -log softmax(logits)[target], the same on all ranks."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange

    def forward(self, logits_Nv: Tensor, targets_BT: Tensor) -> Tensor:
        """This rank's logits of all tokens, and their targets -> float32 scalar, in nats."""
        loss: Tensor = _CrossEntropy.apply(logits_Nv, targets_BT.flatten(), self.exchange)  # type: ignore[no-untyped-call]
        return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_Nv: Tensor, target_N: Tensor, exchange: Exchange) -> Tensor:
        v, dtype = logits_Nv.shape[1], logits_Nv.dtype
        logits_Nv = logits_Nv.float()
        largest_N = logits_Nv.amax(1)
        exchange.all_reduce(largest_N, maximum=True)
        local_N = target_N - exchange.axis.index * v
        here_N = (local_N >= 0) & (local_N < v)
        local_N = local_N.masked_fill(~here_N, 0)
        shifted_Nv = logits_Nv - largest_N[:, None]
        of_target_N = shifted_Nv.gather(1, local_N[:, None])[:, 0] * here_N
        exponential_Nv = shifted_Nv.exp_()
        sums_2N = torch.stack((exponential_Nv.sum(1), of_target_N))
        exchange.all_reduce(sums_2N)
        # softmax - onehot, made here and in place, so that the backward only scales it.
        exponential_Nv /= sums_2N[0][:, None]
        exponential_Nv.scatter_add_(1, local_N[:, None], -here_N[:, None].float())
        ctx.save_for_backward(exponential_Nv.to(dtype))
        return (sums_2N[0].log() - sums_2N[1]).sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None, None]:
        (gradient_Nv,) = ctx.saved_tensors
        return gradient_Nv * dloss, None, None
