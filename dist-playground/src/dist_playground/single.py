"""No parallelism. Alone it is the reference; in several ranks, the ideal that talk is held to.

With W ranks it trains W models that share nothing but the machine: what W devices could do if
communication were free. Their losses part, as nobody averages the gradients.
"""

import torch
from torch import nn

from dist_playground.model import GPT
from dist_playground.strategy import Strategy
from dist_playground.world import World

__all__ = ["SINGLE"]


def parallelise(model: GPT, world: World, compute_dtype: torch.dtype) -> nn.Module:
    """Leave the model as it is."""
    return model


SINGLE = Strategy("single", parallelise, splits_batch=True, synchronises=False)
