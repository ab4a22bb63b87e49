"""torch's pipelining: a PipelineStage a rank, and the schedules GPipe and 1F1B."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from dist_playground.builtin.wrapped import Wrapped
from dist_playground.errors import UsageError
from dist_playground.model import GPT
from dist_playground.settings import Settings
from dist_playground.stage import Stage
from dist_playground.strategy import MicroBatch, Parallel
from dist_playground.world import World

__all__ = ["Pipeline", "StageOnly", "check"]


class StageOnly(Wrapped):
    """One stage's parameters: the gradient's norm is that of all stages together."""

    def __init__(self, model: GPT, world: World) -> None:
        super().__init__(Stage(model, world.rank, world.size), divisor=1)

    def gradients(self) -> list[tuple[Tensor, int]]:
        """Every parameter's, which no other rank has."""
        return [(p.grad, 1) for p in self.parameters() if p.grad is not None]

    clip = Parallel.clip


class Pipeline:
    """A schedule for `StageOnly`, made anew for each shape of micro-batches that comes."""

    def __init__(self, world: World, interleave: bool) -> None:
        self.world = world
        self._kind = Schedule1F1B if interleave else ScheduleGPipe
        self._made: dict[tuple[int, ...], Schedule1F1B | ScheduleGPipe] = {}
        self._total = 0

    def __call__(self, parallel: Parallel, batches: Sequence[MicroBatch], total: int) -> Tensor:
        """Forward and backward of every micro-batch; the loss share, 0 but on the last stage."""
        stage = parallel.module
        assert isinstance(stage, Stage)
        self._total = total
        losses: list[Tensor] = []
        schedule = self._schedule(stage, batches)
        tokens = [torch.cat([batch.tokens for batch in batches])] if stage.first else []
        targets = torch.cat([batch.targets for batch in batches]) if stage.last else None
        schedule.step(
            *tokens,
            target=targets,
            losses=losses if stage.last else None,
            return_outputs=False,
        )
        parallel.finish()
        return torch.stack([loss.detach() for loss in losses]).sum() if losses else self._nothing()

    def _nothing(self) -> Tensor:
        return torch.zeros((), device=self.world.device)

    def _schedule(
        self, stage: Stage, batches: Sequence[MicroBatch]
    ) -> Schedule1F1B | ScheduleGPipe:
        shapes = {tuple(batch.tokens.shape) for batch in batches}
        if len(shapes) > 1:
            raise UsageError(
                "this batch, an epoch's last one, does not divide into micro-batches of equally "
                "many rows, which --impl torch needs: use another --batch-size or --text-bytes"
            )
        key = (len(batches), *shapes.pop())
        if key not in self._made:
            self._made[key] = self._kind(
                PipelineStage(stage, self.world.rank, self.world.size, self.world.device),
                n_microbatches=len(batches),
                loss_fn=self._loss(stage),
                scale_grads=False,
            )
        return self._made[key]

    def _loss(self, stage: Stage) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda logits, targets: stage.criterion(logits, targets) / self._total


def check(settings: Settings, size: int, tied: bool) -> None:
    """Raise UsageError for what torch's pipelining cannot do."""
    if tied:
        raise UsageError(
            "--impl torch has no tied weights in a pipeline: use --impl scratch, or another --model"
        )
    if settings.batch_size % settings.accumulate:
        raise UsageError(
            f"--impl torch needs micro-batches of equally many rows, and --batch-size "
            f"{settings.batch_size} does not divide by --accumulate {settings.accumulate}"
        )
    if settings.schedule == "1f1b" and settings.accumulate < size:
        raise UsageError(
            f"--impl torch needs at least as many micro-batches as the {size} stages for 1f1b: use "
            f"--accumulate {size} or more, or --schedule afab"
        )
