"""A small GPT: RMSNorm, causal attention with rotary positions, a GELU MLP, a next-byte loss.

Suffixes are shapes: B batch, T positions, D width, H heads, K width of a head, V vocabulary.
Query, key and value have their own matrix each and none has a bias, so that cutting a matrix by
columns cuts it between heads (tensor_parallel.py).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GPT", "MODELS", "GPTConfig"]


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model; `width` must be a multiple of 2 x `heads` (rotary needs even K)."""

    layers: int
    width: int
    heads: int
    vocabulary_size: int = 256


MODELS = {
    "tiny": GPTConfig(layers=4, width=128, heads=4),  # 0.85 M parameters
    # GPT-2's shape with its vocabulary (padded to a multiple of 128) although bytes use only 256
    # entries: embedding and head cost what they cost in a real model. 162 M parameters.
    "small": GPTConfig(layers=12, width=768, heads=12, vocabulary_size=50304),
}


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D] float32."""
        x_BTD = x_BTD.float()
        inverse_rms_BT1 = x_BTD.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return x_BTD * inverse_rms_BT1 * self.weight


def rotation_angles(T: int, K: int, device: torch.device) -> Tensor:
    """Cosine and sine [2, T, K/2] of position x frequency (Su et al. 2021, arXiv:2104.09864)."""
    frequency_F = 10000.0 ** (torch.arange(0, K, 2, device=device) / -K)
    angle_TF = torch.arange(T, device=device)[:, None] * frequency_F
    return torch.stack((angle_TF.cos(), angle_TF.sin()))


def rotate(x_BHTK: Tensor, rotation_2TF: Tensor) -> Tensor:
    """Turn each pair of channels (k, k + K/2) by its angle at this position."""
    cos_TF, sin_TF = rotation_2TF
    a, b = x_BHTK.float().chunk(2, dim=-1)
    turned = torch.cat((a * cos_TF - b * sin_TF, a * sin_TF + b * cos_TF), dim=-1)
    return turned.to(x_BHTK.dtype)


class Attention(nn.Module):
    """Causal self-attention; works on however many heads its matrices hold."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def _heads(self, x_BTD: Tensor) -> Tensor:
        # -1, not the number of heads: a tensor-parallel rank holds only some of them.
        B, T, _ = x_BTD.shape
        return x_BTD.view(B, T, -1, self.head_width).transpose(1, 2)

    def forward(self, x_BTD: Tensor, rotation_2TF: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        query_BHTK = rotate(self._heads(self.query(x_BTD)), rotation_2TF)
        key_BHTK = rotate(self._heads(self.key(x_BTD)), rotation_2TF)
        value_BHTK = self._heads(self.value(x_BTD))
        mixed_BHTK = F.scaled_dot_product_attention(
            query_BHTK, key_BHTK, value_BHTK, is_causal=True
        )
        y_BTD: Tensor = self.output(mixed_BHTK.transpose(1, 2).flatten(2))
        return y_BTD


class MLP(nn.Module):
    """Four times wider, GELU, back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        y_BTD: Tensor = self.down(F.gelu(self.up(x_BTD), approximate="tanh"))
        return y_BTD


class Block(nn.Module):
    """One layer; the residual stream x stays float32 whatever the matrices compute in."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotation_2TF: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation_2TF)
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return x_BTD


class GPT(nn.Module):
    """The language model; its forward gives the loss, since wrappers see only forward calls."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        # GPT-2's: 0.02, and smaller where 2 x layers outputs add up in the residual stream.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("output.weight", "down.weight"))
                scale = (2 * self.config.layers) ** -0.5 if into_residual else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Tokens and targets [B, T] int64 -> the mean cross-entropy in nats, float32 scalar."""
        x_BTD = self.embedding(tokens_BT).float()
        T, K = tokens_BT.shape[1], self.config.width // self.config.heads
        rotation_2TF = rotation_angles(T, K, tokens_BT.device)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotation_2TF)
        logits_BTV = self.head(self.norm(x_BTD)).float()
        loss: Tensor = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        return loss
