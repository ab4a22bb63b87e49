"""What the training loop needs of a module that torch itself made parallel."""

import math

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel

from dist_playground.layout import Piece
from dist_playground.strategy import MicroBatch, Parallel

__all__ = ["Wrapped"]


class Wrapped(Parallel):
    """torch averages gradients over `divisor` ranks, the loop's loss shares are to be summed."""

    def __init__(self, module: nn.Module, divisor: int, foreach: bool = True) -> None:
        self.module = module
        self._divisor = divisor
        self._foreach = foreach

    def forward(self, batch: MicroBatch, total: int) -> Tensor:
        """The module's loss share, times what torch will divide its gradient by."""
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = self.synchronise
        elif isinstance(self.module, FSDPModule):
            self.module.set_is_last_backward(self.synchronise)
        return _Scaled.apply(super().forward(batch, total), self._divisor)  # type: ignore[no-any-return, no-untyped-call]

    def parameters(self) -> list[nn.Parameter]:
        """The module's, which may be DTensors."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def before_step(self) -> None:
        """Drop the last step's gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def finish(self) -> None:
        """torch has waited already."""

    def clip(self, most: float, optimizer: torch.optim.Optimizer) -> Tensor:
        """torch's own clipping."""
        # foreach=False with DTensors that are cut differently: with torch's batched clipping,
        # tensor parallel left the single process's losses on CUDA in torch 2.11 (LOG.md).
        norm = nn.utils.clip_grad_norm_(self.parameters(), most, foreach=self._foreach)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def gradients(self) -> list[tuple[Tensor, int]]:
        """Not needed: `clip` is torch's."""
        raise NotImplementedError

    def pieces(self) -> list[Piece]:
        """Every parameter, or this rank's shard of it."""
        found = []
        for name, parameter in self.module.named_parameters():
            size, offset = tuple(parameter.shape), (0,) * parameter.dim()
            if isinstance(parameter, DTensor):
                size, offset = compute_local_shape_and_global_offset(
                    parameter.shape, parameter.device_mesh, parameter.placements
                )
            if math.prod(size):
                name = name.removeprefix("module.")
                found.append(Piece(name, tuple(parameter.shape), offset, size, parameter, 0))
        return found


class _Scaled(torch.autograd.Function):
    """The same number, its gradient times a factor."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
        return dy * ctx.factor, None
