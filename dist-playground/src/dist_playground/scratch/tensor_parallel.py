"""Tensor parallel: every matrix is cut, and the ranks of an axis work on the same rows.

Megatron's pairs (Shoeybi et al. 2019, arXiv:1909.08053): the first matrix is cut by its outputs
(each rank: some heads, some of the MLP's channels), the second by its inputs, so that only the
pair's output must be summed. Between the pairs each rank keeps 1/W of the tokens (sequence
parallel, Korthikanti et al. 2022, arXiv:2205.05198): that sum is a reduce-scatter, and an
all-gather brings all tokens back before the next pair.

Everything is a plain local tensor: the cutting is done once, here, and the talking is in four
autograd functions (token_exchange.py). N is the tokens of a micro-batch, n = N / W a rank's.
"""

from torch import Tensor, nn

from dist_playground.errors import UsageError
from dist_playground.layout import Placement
from dist_playground.model import GPT, Block, GPTConfig, Linear, RMSNorm
from dist_playground.scratch.token_exchange import (
    Exchange,
    gather_tokens,
    scatter_tokens,
    sum_gradient,
)
from dist_playground.scratch.vocabulary import VocabularyCrossEntropy, VocabularyEmbedding

__all__ = ["check", "cut"]


class ParallelNorm(nn.Module):
    """An RMSNorm of a rank's own tokens: its weight's gradient is summed over the axis."""

    def __init__(self, norm: RMSNorm, exchange: Exchange) -> None:
        super().__init__()
        self.weight = norm.weight
        self.exchange = exchange
        self.output_dtype = norm.output_dtype

    def forward(self, x_nD: Tensor) -> Tensor:
        """[n, D] -> [n, D]."""
        weight = sum_gradient(self.weight, self.exchange)
        x_nD = x_nD.float()
        inverse_rms = x_nD.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return (x_nD * inverse_rms * weight).to(self.output_dtype)


class ParallelBlock(nn.Module):
    """A block whose attention and MLP are cut, and whose residual stream is cut by tokens."""

    def __init__(self, block: Block, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange
        self.attention_norm = ParallelNorm(block.attention_norm, exchange)
        self.attention = block.attention
        self.mlp_norm = ParallelNorm(block.mlp_norm, exchange)
        self.mlp = block.mlp

    def forward(self, x_nD: Tensor, rotation_2TF: Tensor) -> Tensor:
        """[n, D] -> [n, D]."""
        T = rotation_2TF.shape[1]
        y_ND = gather_tokens(self.attention_norm(x_nD), self.exchange)
        y_BTD = self.attention(y_ND.unflatten(0, (-1, T)), rotation_2TF)  # type: ignore[no-untyped-call]
        x_nD = x_nD + scatter_tokens(y_BTD.flatten(0, 1), self.exchange)
        y_ND = self.mlp(gather_tokens(self.mlp_norm(x_nD), self.exchange))
        return x_nD + scatter_tokens(y_ND, self.exchange)


class ParallelHead(nn.Module):
    """This rank's part of the vocabulary's logits, of all tokens."""

    def __init__(self, head: Linear, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange
        self.matrix = head

    def forward(self, x_nD: Tensor) -> Tensor:
        """[n, D] -> [N, V / W]."""
        logits_Nv: Tensor = self.matrix(gather_tokens(x_nD, self.exchange))
        return logits_Nv


def cut(model: GPT, exchange: Exchange) -> dict[str, Placement]:
    """Cut the model in place over the tensor axis; says where each part lies in the whole.

    `model` is the whole model, equal on all ranks. Names of parameters stay as they are but for
    the head's.
    """
    axis = exchange.axis
    whole = dict(model.named_parameters())
    placements = {
        name: Placement(name, tuple(p.shape), (0,) * p.dim(), axis.size)
        for name, p in whole.items()
    }

    def keep(name: str, dim: int) -> nn.Parameter:
        """This rank's part of a matrix along `dim`."""
        parameter = whole[name]
        part = parameter.detach().chunk(axis.size, dim)[axis.index].clone()
        offset = [0, 0]
        offset[dim] = axis.index * part.shape[dim]
        placements[name] = Placement(name, tuple(parameter.shape), tuple(offset))
        return nn.Parameter(part, requires_grad=parameter.requires_grad)

    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        prefix = f"blocks.{number}"
        for name in ("attention.query", "attention.key", "attention.value", "mlp.up"):
            block.get_submodule(name).weight = keep(f"{prefix}.{name}.weight", 0)
        for name in ("attention.output", "mlp.down"):
            block.get_submodule(name).weight = keep(f"{prefix}.{name}.weight", 1)
        model.blocks[number] = ParallelBlock(block, exchange)
    table = keep("embedding.weight", 0)
    model.head.weight = table if model.config.tied else keep("head.weight", 0)
    model.embedding = VocabularyEmbedding(table, exchange)  # type: ignore[assignment]
    model.norm = ParallelNorm(model.norm, exchange)  # type: ignore[assignment]
    model.head = ParallelHead(model.head, exchange)  # type: ignore[assignment]
    model.criterion = VocabularyCrossEntropy(exchange)  # type: ignore[assignment]
    if not model.config.tied:
        placements["head.matrix.weight"] = placements.pop("head.weight")
    return placements


def check(config: GPTConfig, sequence_length: int, size: int) -> None:
    """Raise UsageError unless heads, vocabulary and positions divide by the number of ranks."""
    heads = config.heads
    if heads % size:
        fits = [n for n in range(1, heads + 1) if heads % n == 0]
        raise UsageError(
            f"the model's {heads} heads are not divisible by the {size} tensor-parallel ranks: "
            f"use {' or '.join(map(str, fits))} of them, or another --model"
        )
    if config.vocabulary_size % size:
        raise UsageError(
            f"the model's vocabulary of {config.vocabulary_size} is not divisible by the {size} "
            "tensor-parallel ranks: use fewer of them, or another --model"
        )
    if sequence_length % size:
        raise UsageError(
            f"--sequence-length {sequence_length} is not divisible by the {size} tensor-parallel "
            f"ranks: use --sequence-length {-(-sequence_length // size) * size}"
        )
