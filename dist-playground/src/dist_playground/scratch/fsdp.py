"""Fully sharded data parallel (ZeRO stage 3): each rank keeps 1/W of weights, gradients, moments.

The parameters of a block are one flat vector (Zhao et al. 2023, arXiv:2304.11277). A rank keeps
its part of it in float32. To compute, the parts are gathered in `dtype` straight into the vector
that the block's parameters are views of, and gradients are written straight into another one
that is reduce-scattered: nothing is copied in or out.

Blocks take turns in two such vectors. While one block computes the next one's weights arrive in
the other, forwards and backwards; they may, since the collective is started in the compute
stream's order, after the block that used that vector. The last two blocks are still there when
the backward begins. With `reshard=False` every block has a vector of its own.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_playground.grid import Axis
from dist_playground.layout import Piece, Placement, run_pieces
from dist_playground.model import GPT
from dist_playground.scratch.bucket import Bucket, layout, matrices, padded
from dist_playground.scratch.flat_unit import Slots, Unit
from dist_playground.scratch.single_tensor import reduce_scatter
from dist_playground.scratch.token_exchange import Later
from dist_playground.scratch.vocabulary import VocabularyEmbedding
from dist_playground.strategy import MicroBatch, Parallel

__all__ = ["FSDP"]


class Stage:
    """Modules that run one after another, and the units that must be there while they do."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.units: list[Unit] = []
        # The gradient of a lookup needs the tokens, not the table.
        lookup = (nn.Embedding, VocabularyEmbedding)
        self.only_forward = all(isinstance(module, lookup) for module in modules)


class FSDP(Parallel):
    """A GPT whose parameters are cut over `axis`; one unit a block, embedding and head apart."""

    def __init__(
        self,
        module: GPT,
        axis: Axis,
        placements: dict[str, Placement],
        dtype: torch.dtype = torch.float32,
        reshard: bool = True,
        later: Later | None = None,
    ) -> None:
        self.module = module
        self.axis = axis
        self._later = later
        self._placements = placements
        self._names = {id(p): name for name, p in module.named_parameters()}
        self._linears = matrices(module)
        self.units: list[Unit] = []
        self._buckets: list[Bucket] = []
        self._unit_of: dict[int, Unit] = {}
        self._waiting: set[int] = set()  # buckets whose gradients are not complete
        self._sending: deque[tuple[dist.Work | None, Unit, Tensor, Tensor]] = deque()
        ends: list[list[nn.Module]] = [[module.embedding], [module.norm, module.head]]
        if module.config.tied:
            # One table at both ends: it stays from the beginning to the end.
            ends = [[module.embedding, module.norm, module.head], []]
        blocks = [[block] for block in module.blocks]
        self._stages = [Stage(group) for group in (ends[0], *blocks, ends[1]) if group]
        slots = Slots(dtype, module.embedding.weight.device, axis)
        # Embedding and head take turns too, where nothing of them is frozen: the one's table is
        # needed before the other's, and not again.
        at_ends = [[p for m in end for p in m.parameters()] for end in ends]
        alike = all(p.requires_grad for end in at_ends for p in end)
        longest = max(padded(layout(end)[1], axis.size) for end in at_ends)
        for stage in self._stages:
            for named in self._units_of(stage):
                numel = padded(layout(list(named.values()))[1], axis.size)
                if stage.modules in blocks:
                    trained = next(iter(named.values())).requires_grad
                    slot = slots.next(
                        ("block", numel, trained), 2 if reshard else len(blocks), numel
                    )
                elif alike:
                    slot = slots.next(("ends",), 1, longest)
                else:
                    slot = slots.next((stage, *named), 1, numel)
                self._add_unit(stage, Unit(named, axis, slot))
        for number, stage in enumerate(self._stages):
            self._hook(stage, number)

    def _units_of(self, stage: Stage) -> list[dict[str, nn.Parameter]]:
        """The stage's trained parameters, and its frozen ones, by name."""
        named = {self._names[id(p)]: p for m in stage.modules for p in m.parameters()}
        halves = [{n: p for n, p in named.items() if p.requires_grad == t} for t in (True, False)]
        return [half for half in halves if half]

    def _add_unit(self, stage: Stage, unit: Unit) -> None:
        stage.units.append(unit)
        self.units.append(unit)
        if unit.shard.requires_grad:
            bucket = Bucket(
                unit.parameters, self._allocate, self._complete, lambda: True, self._later
            )
            bucket.take_products_of(self._linears)
            self._buckets.append(bucket)
            self._unit_of[id(bucket)] = unit

    def _hook(self, stage: Stage, number: int) -> None:
        def before_forward(*_: Any) -> None:
            self._enter(number, number + 1)

        def before_backward(_: Tensor) -> None:
            self._enter(number, number - 1, backward=True)

        def after_forward(_: nn.Module, __: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(before_backward)  # type: ignore[no-untyped-call]

        stage.modules[0].register_forward_pre_hook(before_forward)
        stage.modules[-1].register_forward_hook(after_forward)

    def _enter(self, number: int, following: int, backward: bool = False) -> None:
        """Stage `number` is about to compute, and after it the one called `following`."""
        for unit in self._needed(number, backward):
            unit.wait()
        for unit in self._needed(following, backward):
            unit.gather()

    def _needed(self, number: int, backward: bool) -> list[Unit]:
        if not 0 <= number < len(self._stages):
            return []
        stage = self._stages[number]
        return [] if backward and stage.only_forward else stage.units

    def _allocate(self, bucket: Bucket) -> Tensor:
        # One buffer on its way and one being filled: by the time that a block has filled its own,
        # the sum of the block before it has had that long to arrive. The embedding's, the last
        # and largest, comes when memory is fullest, and waits for all others to be gone.
        unit = self._unit_of[id(bucket)]
        while len(self._sending) > (0 if unit is self.units[0] else 1):
            self._receive()
        buffer = torch.empty(unit.numel, device=unit.shard.device)
        # Padding is summed and stepped too: it stays 0.
        ends = [s + p.numel() for s, p in zip(unit.starts, unit.parameters, strict=True)]
        for end, following in zip(ends, [*unit.starts[1:], unit.numel], strict=True):
            buffer[end:following].zero_()
        return buffer

    def _complete(self, bucket: Bucket) -> None:
        unit, buffer = self._unit_of[id(bucket)], bucket.buffer
        assert buffer is not None
        work, mine = None, buffer
        if self.axis.group is not None:
            mine = torch.empty_like(unit.shard)
            work = reduce_scatter(mine, buffer, self.axis.group)
        self._sending.append((work, unit, buffer, mine))
        bucket.drop()
        bucket.reset()
        self._waiting.discard(id(bucket))

    def _receive(self) -> None:
        """Take the oldest sum on its way into the shard's gradient."""
        work, unit, _, mine = self._sending.popleft()
        if work is not None:
            work.wait()
        if unit.shard.grad is None:
            unit.shard.grad = mine
        else:
            unit.shard.grad += mine

    def forward(self, batch: MicroBatch, total: int) -> Tensor:
        """As the module's; every bucket waits for its gradients."""
        self._waiting = set(self._unit_of)
        return super().forward(batch, total)

    def after_backward(self) -> None:
        """Work off what waits; parameters that the loss did not depend on have gradient 0."""
        while self._later:
            self._later.popleft()()
        for bucket in self._buckets:
            if id(bucket) in self._waiting:
                bucket.zero_missing()
                self._complete(bucket)

    def before_step(self) -> None:
        """Drop the last step's gradients."""
        for unit in self.units:
            unit.shard.grad = None

    def finish(self) -> None:
        """Wait for every sum."""
        while self._sending:
            self._receive()

    def parameters(self) -> list[nn.Parameter]:
        """This rank's part of each trained unit, flat float32."""
        return [unit.shard for unit in self.units if unit.shard.requires_grad]

    def gradients(self) -> list[tuple[Tensor, int]]:
        """This rank's part of every trained parameter."""
        found = []
        for unit in self.units:
            if unit.shard.grad is not None:
                low = unit.axis.index * unit.length
                for index, start, stop in unit.runs():
                    holders = self._placements[unit.names[index]].holders
                    found.append((unit.shard.grad[start - low : stop - low], holders))
        return found

    def stepped(self) -> None:
        """What is gathered is out of date."""
        for unit in self.units:
            unit.slot.owner = None

    def pieces(self) -> list[Piece]:
        """This rank's runs of every unit."""
        found = []
        for unit in self.units:
            low = unit.axis.index * unit.length
            for index, start, stop in unit.runs():
                begin = unit.starts[index]
                found += run_pieces(
                    self._placements[unit.names[index]],
                    tuple(unit.parameters[index].shape),
                    start - begin,
                    stop - begin,
                    unit.shard,
                    start - low,
                )
        return found
