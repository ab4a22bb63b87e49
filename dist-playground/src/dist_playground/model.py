"""A small GPT: RMSNorm, causal attention with rotary positions, a GELU MLP, a next-byte loss.

Suffixes are shapes: B batch, T positions, D width, H heads, K width of a head, V vocabulary.
Query, key and value have their own matrix each and none has a bias, so that cutting a matrix by
columns cuts it between heads.

What parallelism needs of it: matrices are `Linear`, `Attention.attend` may be replaced, and so may
the modules `embedding`, `head` and `criterion`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GPT", "MODELS", "Attention", "Block", "GPTConfig", "Linear", "RMSNorm"]


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model; `width` must be a multiple of 2 x `heads` (rotary needs even K)."""

    layers: int
    width: int
    heads: int
    vocabulary_size: int = 256
    tied: bool = False  # the head uses the embedding's table (Press and Wolf, arXiv:1608.05859)


MODELS = {
    "micro": GPTConfig(layers=3, width=32, heads=4),  # for tests: 0.05 M parameters
    "micro-tied": GPTConfig(layers=3, width=32, heads=4, tied=True),
    "tiny": GPTConfig(layers=4, width=128, heads=4),  # 0.85 M parameters
    # GPT-2's shape with its vocabulary (padded to a multiple of 128) although bytes use only 256
    # entries: embedding and head cost what they cost in a real model. 162 M parameters.
    "small": GPTConfig(layers=12, width=768, heads=12, vocabulary_size=50304),
    "large": GPTConfig(layers=21, width=2048, heads=16, vocabulary_size=50304),  # 1.26 B
}


class Linear(nn.Linear):
    """A matrix without bias; a float32 matrix is rounded to its input's dtype for the product."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs] in the input's dtype."""
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, output_dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.output_dtype = output_dtype

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], rounded once to what the matrices after it compute in."""
        x = x.float()
        inverse_rms = x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return (x * inverse_rms * self.weight).to(self.output_dtype)


def rotation_angles(position_T: Tensor, K: int) -> Tensor:
    """Cosine and sine [2, T, K/2] of position x frequency (Su et al. 2021, arXiv:2104.09864)."""
    frequency_F = 10000.0 ** (torch.arange(0, K, 2, device=position_T.device) / -K)
    angle_TF = position_T[:, None] * frequency_F
    return torch.stack((angle_TF.cos(), angle_TF.sin()))


def rotate(x_BHTK: Tensor, rotation_2TF: Tensor) -> Tensor:
    """Turn each pair of channels (k, k + K/2) by its angle at this position."""
    cos_TF, sin_TF = rotation_2TF
    a, b = x_BHTK.float().chunk(2, dim=-1)
    turned = torch.cat((a * cos_TF - b * sin_TF, a * sin_TF + b * cos_TF), dim=-1)
    return turned.to(x_BHTK.dtype)


def causal_attention(query_BHTK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor) -> Tensor:
    """Softmax attention [B, H, T, K], each position over itself and those before it."""
    return F.scaled_dot_product_attention(query_BHTK, key_BHTK, value_BHTK, is_causal=True)


class Attention(nn.Module):
    """Causal self-attention; works on however many heads its matrices hold."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.query = Linear(config.width, config.width)
        self.key = Linear(config.width, config.width)
        self.value = Linear(config.width, config.width)
        self.output = Linear(config.width, config.width)
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = causal_attention

    def _heads(self, x_BTD: Tensor) -> Tensor:
        # Not the model's number of heads: a tensor-parallel rank holds only some of them.
        B, T, D = x_BTD.shape
        return x_BTD.view(B, T, D // self.head_width, self.head_width).transpose(1, 2)

    def forward(self, x_BTD: Tensor, rotation_2TF: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        query_BHTK = rotate(self._heads(self.query(x_BTD)), rotation_2TF)
        key_BHTK = rotate(self._heads(self.key(x_BTD)), rotation_2TF)
        value_BHTK = self._heads(self.value(x_BTD))
        mixed_BHTK = self.attend(query_BHTK, key_BHTK, value_BHTK)
        y_BTD: Tensor = self.output(mixed_BHTK.transpose(1, 2).flatten(2))
        return y_BTD


class MLP(nn.Module):
    """Four times wider, GELU, back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, 4 * config.width)
        self.down = Linear(4 * config.width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        y_BTD: Tensor = self.down(F.gelu(self.up(x_BTD), approximate="tanh"))
        return y_BTD


class Block(nn.Module):
    """One layer; the residual stream x stays float32 whatever the matrices compute in."""

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, compute_dtype)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, compute_dtype)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotation_2TF: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation_2TF)
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return x_BTD


class CrossEntropy(nn.Module):
    """The sum over all positions of -log softmax(logits)[target], in nats."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits [..., V], targets [...] int64 -> float32 scalar; 0 for no positions at all."""
        return F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="sum")


class GPT(nn.Module):
    """The language model; its forward gives the loss, since wrappers see only forward calls."""

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.blocks = nn.ModuleList(Block(config, compute_dtype) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, compute_dtype)
        self.head = Linear(config.width, config.vocabulary_size)
        self.criterion = CrossEntropy()
        if config.tied:
            self.head.weight = self.embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        # GPT-2's: 0.02, and smaller where 2 x layers outputs add up in the residual stream.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("output.weight", "down.weight"))
                scale = (2 * self.config.layers) ** -0.5 if into_residual else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def rotation(self, tokens_BT: Tensor, position_T: Tensor | None) -> Tensor:
        """Rotary angles [2, T, K/2] of these positions, or of 0 .. T-1."""
        if position_T is None:
            position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        return rotation_angles(position_T, self.config.width // self.config.heads)

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        total: int | None = None,
        position_T: Tensor | None = None,
    ) -> Tensor:
        """Tokens and targets [B, T] int64 -> these tokens' share of a mean loss over `total`.

        In nats, float32 scalar. Shares of ranks and of micro-batches add up to the loss of the
        whole batch, however unevenly it is split; `total` None: these are all the tokens.
        """
        x_BTD = self.embedding(tokens_BT).float()
        rotation_2TF = self.rotation(tokens_BT, position_T)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotation_2TF)
        logits_BTV = self.head(self.norm(x_BTD))
        loss: Tensor = self.criterion(logits_BTV, targets_BT)
        return loss / (targets_BT.numel() if total is None else total)
