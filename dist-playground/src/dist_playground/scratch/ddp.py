"""Distributed data parallel: every rank has all weights and sums its gradients with the others.

Gradients become complete from the last layer to the first, so parameters are put into buckets in
reverse order, and a bucket's all-reduce runs beside the backward of the layers before it (Li et
al. 2020, arXiv:2006.15704). All ranks must start their collectives in the same order: a bucket
that is complete early waits for those in front of it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_playground.grid import Axis
from dist_playground.layout import Piece, Placement, run_pieces
from dist_playground.scratch.bucket import Bucket, layout, matrices, padded
from dist_playground.scratch.copy_engines import Arena, Done
from dist_playground.scratch.token_exchange import Later
from dist_playground.strategy import Parallel

__all__ = ["DDP", "FlatBucket", "placements_of"]


def placements_of(module: nn.Module, holders: int = 1) -> dict[str, Placement]:
    """Every parameter whole on this rank: what is true before anything is cut."""
    return {
        name: Placement(name, tuple(p.shape), (0,) * p.dim(), holders)
        for name, p in module.named_parameters()
    }


class FlatBucket(Bucket):
    """A bucket whose weights are flat too: float32, and a copy in the dtype of the products.

    The module's parameters become views of the copy, or of the float32 weights where the two
    dtypes are the same; `masters` are views of the float32 weights.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        dtype: torch.dtype,
        flat_gradient: Tensor,
        complete: Callable[[Bucket], None],
        armed: Callable[[], bool],
        later: Later | None,
    ) -> None:
        super().__init__(parameters, lambda _: self.flat_gradient, complete, armed, later)
        self.flat_gradient = flat_gradient
        self.begin = int(flat_gradient.storage_offset())
        self.numel = flat_gradient.numel()
        device = flat_gradient.device
        self.flat_master = torch.zeros(self.numel, device=device)
        self.flat_copy = self.flat_master
        if dtype != torch.float32:
            self.flat_copy = torch.zeros(self.numel, device=device, dtype=dtype)
        self.masters: list[nn.Parameter] = []
        for start, parameter in zip(self.starts, parameters, strict=True):
            master = self.flat_master[start : start + parameter.numel()].view(parameter.shape)
            master.copy_(parameter.detach())
            copy = self.flat_copy[start : start + parameter.numel()].view(parameter.shape)
            parameter.data = copy
            same = self.flat_copy is self.flat_master
            self.masters.append(parameter if same else nn.Parameter(master))
        self.refresh()

    def refresh(self) -> None:
        """Round the float32 weights into the copy."""
        if self.flat_copy is not self.flat_master:
            self.flat_copy.copy_(self.flat_master)


class DDP(Parallel):
    """Sums gradients over `axis`; weights are float32, matrices compute with copies in a `dtype`.

    `find_unused` gives parameters that no rank's loss depends on no gradient at all instead of 0,
    so that the optimizer leaves them alone, at the price of one more small all-reduce a step.
    """

    def __init__(
        self,
        module: nn.Module,
        axis: Axis,
        placements: dict[str, Placement],
        dtype: torch.dtype = torch.float32,
        bucket_mib: float = 100.0,
        find_unused: bool = False,
        later: Later | None = None,
    ) -> None:
        self.module = module
        self._later = later
        self.axis = axis
        self._find_unused = find_unused
        named = dict(module.named_parameters())
        self._frozen = [(placements[n], p) for n, p in named.items() if not p.requires_grad]
        linears = matrices(module)
        products = {id(linear.weight) for linear in linears}
        trained = [name for name in reversed(named) if named[name].requires_grad]
        # Matrices first, each kind in the order of the backward: the embedding comes last anyway,
        # and what is left are a few thousand numbers of the norms.
        first = [name for name in trained if id(named[name]) in products]
        others = [name for name in trained if id(named[name]) not in products]
        most = bucket_mib * 2**20 / 4
        groups = [(group, dtype) for group in _split(first, named, most)]
        groups += [(group, torch.float32) for group in _split(others, named, most)]
        lengths = [layout([named[name] for name in group])[1] for group, _ in groups]
        lengths = [padded(length, axis.size) for length in lengths]
        device = next(module.parameters()).device
        self._arena = Arena.if_possible(axis, device, sum(lengths), torch.float32)
        flat = torch.zeros(sum(lengths), device=device) if self._arena is None else self._arena.flat
        self.buckets: list[FlatBucket] = []
        for (group, kind), gradient in zip(groups, torch.split(flat, lengths), strict=True):
            bucket = FlatBucket(
                [named[name] for name in group],
                kind,
                gradient,
                self._complete,
                lambda: self.synchronise,
                later,
            )
            bucket.take_products_of(linears)
            self.buckets.append(bucket)
        self._placements = [[placements[name] for name in group] for group, _ in groups]
        self.before_step()

    def before_step(self) -> None:
        """Start every bucket anew."""
        for bucket in self.buckets:
            bucket.reset()
            for master in bucket.masters:
                master.grad = None  # else autograd would add the next gradient to it
        self._next = 0  # the first bucket whose collective has not been started
        self._full = [False] * len(self.buckets)
        self._works: list[dist.Work | Done] = []

    def _complete(self, bucket: Bucket) -> None:
        self._full[self.buckets.index(bucket)] = True  # type: ignore[arg-type]
        while self._next < len(self.buckets) and self._full[self._next]:
            self._start(self.buckets[self._next])

    def _start(self, bucket: FlatBucket) -> None:
        self._next += 1
        if self.axis.group is not None:
            self._works.append(self._reduce(bucket, self.axis.group))

    def _reduce(self, bucket: FlatBucket, group: dist.ProcessGroup) -> dist.Work | Done:
        if self._arena is not None:
            return self._arena.all_reduce(bucket.begin, bucket.begin + bucket.numel)
        work = dist.all_reduce(bucket.flat_gradient, group=group, async_op=True)
        assert work is not None
        return work  # type: ignore[no-any-return]

    def after_backward(self) -> None:
        """Work off what waits."""
        while self._later:
            self._later.popleft()()

    def finish(self) -> None:
        """Send what is left, wait for the sums, and hand them to the optimizer."""
        used = [flag for bucket in self.buckets for flag in bucket.written]
        for bucket in self.buckets[self._next :]:
            bucket.zero_missing()
            self._start(bucket)
        for work in self._works:
            work.wait()
        self._hand_over(self._used_anywhere(used) if self._find_unused else [True] * len(used))

    def _used_anywhere(self, used: list[bool]) -> list[bool]:
        if self.axis.group is None:
            return used
        flags = torch.tensor(used, dtype=torch.uint8, device=self.buckets[0].flat_master.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.axis.group)
        return [bool(flag) for flag in flags.tolist()]

    def _hand_over(self, used: list[bool]) -> None:
        flags = iter(used)
        for bucket in self.buckets:
            for index, master in enumerate(bucket.masters):
                master.grad = bucket.view(index) if next(flags) else None

    def parameters(self) -> list[nn.Parameter]:
        """The float32 weights, whole."""
        return [master for bucket in self.buckets for master in bucket.masters]

    def gradients(self) -> list[tuple[Tensor, int]]:
        """Every parameter's, each on as many ranks as sum it."""
        return [
            (master.grad, placement.holders * self.axis.size)
            for bucket, placements in zip(self.buckets, self._placements, strict=True)
            for master, placement in zip(bucket.masters, placements, strict=True)
            if master.grad is not None
        ]

    def stepped(self) -> None:
        """Refresh what the products use."""
        with torch.no_grad():
            for bucket in self.buckets:
                bucket.refresh()

    def pieces(self) -> list[Piece]:
        """Every parameter whole, frozen ones too."""
        held = list(self._frozen)
        for bucket, placements in zip(self.buckets, self._placements, strict=True):
            held += zip(placements, bucket.masters, strict=True)
        return self._whole(held)

    def _whole(self, held: list[tuple[Placement, nn.Parameter]]) -> list[Piece]:
        return [
            piece
            for placement, owner in held
            for piece in run_pieces(placement, tuple(owner.shape), 0, owner.numel(), owner, 0)
        ]


def _split(names: list[str], parameters: dict[str, nn.Parameter], most: float) -> list[list[str]]:
    """Consecutive names, in groups of at most `most` numbers where a parameter allows it."""
    groups: list[list[str]] = []
    size = 0
    for name in names:
        numel = parameters[name].numel()
        if not groups or size + numel > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += numel
    return groups
