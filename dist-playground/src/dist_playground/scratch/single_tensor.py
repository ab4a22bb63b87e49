"""All-gather and reduce-scatter from and into one tensor, begun and not waited for.

PyTorch 2.13 gave the two other names and warns of the old ones; before it there are only those.
"""

import torch.distributed as dist
from torch import Tensor

__all__ = ["all_gather", "reduce_scatter"]

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_gather(into: Tensor, mine: Tensor, group: dist.ProcessGroup | None) -> dist.Work:
    """Fill `into` with every rank's `mine`, in order of rank."""
    work: dist.Work = _all_gather(into, mine, group=group, async_op=True)
    return work


def reduce_scatter(mine: Tensor, whole: Tensor, group: dist.ProcessGroup | None) -> dist.Work:
    """Fill `mine` with this rank's part of the sum of every rank's `whole`."""
    work: dist.Work = _reduce_scatter(mine, whole, group=group, async_op=True)
    return work
