"""ZeRO stage 1: as DDP, but each rank steps only its part and then shares it.

An all-reduce is a reduce-scatter and an all-gather (Rajbhandari et al. 2020, arXiv:1910.02054):
stepping between the two needs 1/W of the optimizer's moments and time. The all-gather moves
weights in the dtype that the products use, half of the bytes in bfloat16.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_playground.layout import Piece, run_pieces
from dist_playground.scratch.copy_engines import Done
from dist_playground.scratch.ddp import DDP, FlatBucket
from dist_playground.scratch.single_tensor import all_gather, reduce_scatter

__all__ = ["ZeRO1"]


class ZeRO1(DDP):
    """Sums each bucket's gradient to the rank that steps that part; takes what DDP takes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._shards = [nn.Parameter(self._shard(bucket.flat_master)) for bucket in self.buckets]

    def _shard(self, flat: Tensor) -> Tensor:
        length = flat.numel() // self.axis.size
        return flat[self.axis.index * length : (self.axis.index + 1) * length]

    def _reduce(self, bucket: FlatBucket, group: dist.ProcessGroup) -> dist.Work | Done:
        if self._arena is not None:
            return self._arena.reduce_scatter(bucket.begin, bucket.begin + bucket.numel)
        return reduce_scatter(self._shard(bucket.flat_gradient), bucket.flat_gradient, group)

    def parameters(self) -> list[nn.Parameter]:
        """This rank's part of each bucket, flat."""
        return self._shards

    def _hand_over(self, used: list[bool]) -> None:
        for shard, bucket in zip(self._shards, self.buckets, strict=True):
            shard.grad = self._shard(bucket.flat_gradient)

    def gradients(self) -> list[tuple[Tensor, int]]:
        """This rank's part of every parameter."""
        found = []
        for number, index, start, stop in self._runs():
            gradient = self.buckets[number].flat_gradient[start:stop]
            found.append((gradient, self._placements[number][index].holders))
        return found

    def _runs(self) -> list[tuple[int, int, int, int]]:
        """(bucket, parameter in it, start, stop in the flat bucket) of what this rank steps."""
        found = []
        for number, bucket in enumerate(self.buckets):
            length = bucket.numel // self.axis.size
            low, high = self.axis.index * length, (self.axis.index + 1) * length
            for index, begin in enumerate(bucket.starts):
                start = max(low, begin)
                stop = min(high, begin + bucket.parameters[index].numel())
                if start < stop:
                    found.append((number, index, start, stop))
        return found

    def stepped(self) -> None:
        """Every rank gets all parts."""
        works = []
        with torch.no_grad():
            for bucket in self.buckets:
                mine = self._shard(bucket.flat_copy)
                if bucket.flat_copy is not bucket.flat_master:
                    mine.copy_(self._shard(bucket.flat_master))
                if self.axis.group is not None:
                    works.append(all_gather(bucket.flat_copy, mine, self.axis.group))
        for work in works:
            work.wait()

    def pieces(self) -> list[Piece]:
        """This rank's runs of the buckets; frozen parameters whole."""
        found = self._whole(self._frozen)
        for number, index, start, stop in self._runs():
            bucket = self.buckets[number]
            begin = bucket.starts[index]
            found += run_pieces(
                self._placements[number][index],
                tuple(bucket.parameters[index].shape),
                start - begin,
                stop - begin,
                self._shards[number],
                start - self.axis.index * (bucket.numel // self.axis.size),
            )
        return found
