"""How much memory a training step needs on one GPU: predicted from the model's shape.

    peak = state + gathered + tokens x (layers x 46 D + 10 D + 12 V)      bytes, bfloat16 matrices

State is what a rank keeps of n parameters from step to step: float32 weights, gradients and two
moments, and the copies that matrices compute with. The activations of a block, saved for its
backward, are 46 bytes for each token and channel: two norms keep their float32 input and output
before the weight (16) and give a bfloat16 output (4); query, key, value, attention's result and
the output's input are bfloat16 (10); the MLP keeps both ends of its GELU, four times as wide (16).
The peak is in the loss's backward, where three float32 tensors of logits exist at once (12 V);
10 D are the ends of the model. docs/training-memory.md derives it.
"""

from dist_playground.model import GPTConfig

__all__ = ["parameters", "predicted_peak"]


def parameters(config: GPTConfig) -> int:
    """Numbers in the whole model."""
    ends = (1 if config.tied else 2) * config.vocabulary_size * config.width
    block = 12 * config.width**2 + 2 * config.width
    return config.layers * block + ends + config.width


def predicted_peak(
    config: GPTConfig, kind: str, ranks: int, tokens: int, reshard: bool = True
) -> float:
    """Bytes at the peak of an eager bfloat16 step, on a rank that trains on so many tokens.

    `kind`: ddp, zero1, fsdp or tensor_parallel; `tokens` of a micro-batch, for tensor parallelism
    those that all ranks share.
    """
    n, D, V, L = parameters(config), config.width, config.vocabulary_size, config.layers
    table = 0 if config.tied else V * D  # computes in float32 and needs no copy
    activations: float = tokens * (46 * L * D + 10 * D + 12 * V)
    if kind == "tensor_parallel":
        # All but the two gathered inputs of a block is divided.
        activations = tokens * (L * D * (42 / ranks + 4) + 10 * D / ranks + 12 * V / ranks)
        return (18 * n - 2 * table) / ranks + activations
    if kind == "fsdp":
        # Gradients are not there yet at the peak. Two blocks are gathered, or all, and one end.
        gathered = 2 * ((2 if reshard else L) * 12 * D**2 + V * D)
        # With few tokens memory is fullest at the end of the backward: all gradients are there,
        # and the embedding's twice more, in bfloat16 and, not yet summed, in float32.
        return gathered + max(12 * n / ranks + activations, 16 * n / ranks + 6 * V * D)
    moments = 8 * n / (ranks if kind == "zero1" else 1)
    return 10 * n - 2 * table + moments + activations
