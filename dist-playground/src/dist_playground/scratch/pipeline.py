"""Pipeline parallel: each rank of an axis has some of the layers, micro-batches flow through them.

All-forward-all-backward (GPipe, Huang et al. 2019, arXiv:1811.06965) is the simple order: every
stage keeps the activations of all M micro-batches. One-forward-one-backward (PipeDream-Flush,
Narayanan et al. 2021, arXiv:2104.04473) has the same idle time, (P - 1) of M + P - 1 turns, and
keeps those of at most P: after a warm-up each forward is followed by a backward.

What flows is the residual stream [B, T, D], float32, and its gradient. Shapes follow from the
batch, which every rank knows, so nothing but the numbers is sent.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dist_playground.errors import UsageError
from dist_playground.grid import Axis
from dist_playground.model import GPTConfig
from dist_playground.stage import Stage
from dist_playground.strategy import MicroBatch, Parallel

__all__ = ["Pipeline", "check"]


class Pipeline:
    """A schedule for `Parallel`: its module is a Stage, and micro-batches go through all."""

    def __init__(self, axis: Axis, interleave: bool, ends: Axis | None) -> None:
        self.axis = axis
        self._interleave = interleave
        self._ends = ends  # first and last stage, where both have the same table

    def __call__(self, parallel: Parallel, batches: Sequence[MicroBatch], total: int) -> Tensor:
        """Forward and backward of every micro-batch; the loss share, 0 but on the last stage."""
        stage = parallel.module
        assert isinstance(stage, Stage)
        count = len(batches)
        warm_up = min(count, self.axis.size - 1 - self.axis.index) if self._interleave else count
        waiting: list[tuple[Tensor | None, Tensor]] = []  # (input, output), oldest first
        shares = [torch.zeros((), device=batches[0].tokens.device)]
        done = 0

        def forward(number: int, x: Tensor | None) -> Tensor:
            batch = batches[number]
            output = stage(batch.tokens if x is None else x, batch.positions)
            if stage.last:
                output = stage.criterion(output, batch.targets) / total
                shares.append(output.detach())
            waiting.append((x, output))
            return output.detach()  # type: ignore[no-any-return]

        def backward(dy: Tensor | None) -> Tensor | None:
            nonlocal done
            x, output = waiting.pop(0)
            done += 1
            parallel.synchronise = done == count
            torch.autograd.backward(output, dy)
            parallel.after_backward()
            return None if x is None else x.grad

        for number in range(warm_up):
            self._send(forward(number, self._receive(stage, batches[number])), stage)
        steady = count - warm_up
        x = self._receive(stage, batches[warm_up]) if steady else None
        for turn in range(steady):
            y = forward(warm_up + turn, x)
            dy = self._exchange(y, 1, batches[turn], stage) if not stage.last else None
            dx = backward(dy)
            following = warm_up + turn + 1
            if stage.first:
                continue
            assert dx is not None
            if following < count:
                x = self._exchange(dx, -1, batches[following], stage).requires_grad_()
            else:
                self._talk(dx, None, -1)
        for number in range(steady, count):
            dy = None
            if not stage.last:
                dy = self._empty(stage, batches[number])
                self._talk(None, dy, 1)
            dx = backward(dy)
            if dx is not None:
                self._talk(dx, None, -1)
        parallel.finish()
        if self._ends is not None and (stage.first or stage.last):
            (table,) = (p.owner for p in parallel.pieces() if p.name == "embedding.weight")
            dist.all_reduce(table.grad, group=self._ends.group)
        return torch.stack(shares).sum()

    def _empty(self, stage: Stage, batch: MicroBatch) -> Tensor:
        return torch.empty(*batch.tokens.shape, stage.width, device=batch.tokens.device)

    def _receive(self, stage: Stage, batch: MicroBatch) -> Tensor | None:
        """The input of a forward from the stage before."""
        if stage.first:
            return None
        x = self._empty(stage, batch)
        self._talk(None, x, -1)
        return x.requires_grad_()

    def _send(self, y: Tensor, stage: Stage) -> None:
        if not stage.last:
            self._talk(y, None, 1)

    def _exchange(self, give: Tensor, side: int, batch: MicroBatch, stage: Stage) -> Tensor:
        """Send to a neighbour and receive from it at once: one after the other could deadlock."""
        take = self._empty(stage, batch)
        self._talk(give, take, side)
        return take

    def _talk(self, give: Tensor | None, take: Tensor | None, side: int) -> None:
        peer = self.axis.ranks[self.axis.index + side]
        calls = []
        if give is not None:
            calls.append(dist.P2POp(dist.isend, give.contiguous(), peer, self.axis.group))
        if take is not None:
            calls.append(dist.P2POp(dist.irecv, take, peer, self.axis.group))
        for work in dist.batch_isend_irecv(calls):
            work.wait()


def check(config: GPTConfig, size: int) -> None:
    """Raise UsageError for more stages than layers."""
    if size > config.layers:
        raise UsageError(
            f"{size} pipeline stages for {config.layers} layers: use at most {config.layers} "
            "of them, or another --model"
        )
