"""What the training loop needs of a kind of parallelism, and what every kind shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_playground.layout import Piece

__all__ = ["MicroBatch", "Parallel", "Schedule", "one_after_another"]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward works on: this rank's rows and positions."""

    tokens: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64
    positions: Tensor | None = None  # [T]; None: 0 .. T-1


class Parallel(ABC):
    """A module whose gradients are summed over ranks, and the parameters that this rank steps."""

    module: nn.Module
    # False while micro-batches accumulate: gradients are added up here and not yet sent.
    synchronise: bool = True
    _kept: dict[tuple[int, ...], Tensor] = {}  # noqa: RUF012  (replaced, never changed)

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer steps on this rank; `.grad` is set by `finish`."""

    @abstractmethod
    def finish(self) -> None:
        """After the last backward (the schedule calls it): wait until all gradients are summed."""

    @abstractmethod
    def gradients(self) -> list[tuple[Tensor, int]]:
        """Gradients on this rank, each with the number of ranks that hold the same one."""

    @abstractmethod
    def pieces(self) -> list[Piece]:
        """Where each number that this rank steps lies in the whole model's weights."""

    def after_backward(self) -> None:  # noqa: B027
        """After each micro-batch's backward."""

    def before_step(self) -> None:  # noqa: B027
        """Forget the last step's gradients."""

    def stepped(self) -> None:  # noqa: B027
        """After the optimizer: bring the weights that the model computes with up to date."""

    def _shares(self, copies: tuple[int, ...], device: torch.device) -> Tensor:
        """What each gradient's square counts: a number that several ranks hold counts once.

        Kept from step to step: making a tensor from a list waits for the GPU.
        """
        if copies not in self._kept:
            size = dist.get_world_size()
            everywhere = all(number == size for number in copies)  # then nothing is to be summed
            shares = [1.0 if everywhere else 1 / number for number in copies]
            self._kept = {copies: torch.tensor(shares, device=device)}
        return self._kept[copies]

    def forward(self, batch: MicroBatch, total: int) -> Tensor:
        """The micro-batch's share of the loss."""
        loss: Tensor = self.module(batch.tokens, batch.targets, total, batch.positions)
        return loss

    def clip(self, most: float, optimizer: torch.optim.Optimizer) -> Tensor:
        """Let the optimizer step with at most a gradient of norm `most`; gives its norm, a scalar.

        The gradients stay as they are: the fused AdamW divides by `grad_scale` as it reads them,
        which saves a pass over all of them.
        """
        held = self.gradients()
        norms = torch._foreach_norm([gradient for gradient, _ in held])
        copies = tuple(copies for _, copies in held)
        square = (torch.stack(norms).square() * self._shares(copies, norms[0].device)).sum()
        if any(number != dist.get_world_size() for number in copies):
            dist.all_reduce(square)
        norm = square.sqrt()
        optimizer.grad_scale = ((norm + 1e-6) / most).clamp(min=1)  # type: ignore[attr-defined]
        return norm


Schedule = Callable[[Parallel, Sequence[MicroBatch], int], Tensor]


def one_after_another(parallel: Parallel, batches: Sequence[MicroBatch], total: int) -> Tensor:
    """Forward and backward of each micro-batch in turn; gives the sum of the loss shares.

    When it returns, every gradient is summed over its ranks: `finish` was called.
    """
    shares = []
    for number, batch in enumerate(batches, start=1):
        parallel.synchronise = number == len(batches)
        loss = parallel.forward(batch, total)
        loss.backward()  # type: ignore[no-untyped-call]
        parallel.after_backward()
        shares.append(loss.detach())
    parallel.finish()
    return torch.stack(shares).sum()
