"""The scheduler: decides, before each model step, which tokens of which sequences it computes.

Prefill and decode are one thing here. Each sequence has tokens known and tokens computed; a step
computes some of the difference. A decode is a difference of one; a long prompt is spread over
several steps (chunked prefill, the idea: Sarathi-Serve, Agrawal et al. 2024) so that it never
stalls the others; a preempted sequence starts again from what the prefix cache still has of it.

Pure Python, no torch: tests and simulations run it without a model.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import Any

from mini_llm_server.engine.kv_cache import BlockPool, Copy, block_key
from mini_llm_server.engine.request import Request, Status


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, start + num_tokens) of a sequence, computed in this step.

    Attributes:
        samples: whether it reaches the last known token, so that the step gives the next one.
        copies: to be made in the KV cache before any chunk of the step writes.
    """

    request: Request
    start: int
    num_tokens: int
    samples: bool
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class ScheduledBatch:
    """One step's work: every chunk's blocks are allocated when it is handed out."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Request, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens the model computes in this step."""
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler:
    """Queue, running batch, chunking and preemption: continuous batching.

    Every sequence has a rank that never changes: when it arrived, moved by its priority. Both
    queues are sorted by it. The first in rank can take the seats and blocks of all others, so it
    always moves; and since later arrivals rank later, each is the first one day and none starves.

    A waiting request joins as soon as there is room (the idea: Orca, Yu et al. 2022); the two
    baselines below admit less.

    Args:
        pool: the KV blocks; a sequence must fit into it alone (the engine refuses others).
        max_num_seqs: most sequences in the batch; a request's n must not exceed it.
        max_num_batched_tokens: most tokens in a step; at least max_num_seqs (`EngineConfig` sees
            to it), so that a step always has room for a decode of each.
        prefix_caching: whether prompts start from blocks that earlier ones left.
        priority_steps: how many steps earlier a request counts as arrived for a priority of -1.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        *,
        prefix_caching: bool = True,
        priority_steps: int = 256,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.prefix_caching = prefix_caching
        self.priority_steps = priority_steps
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.num_prefix_query_tokens = 0
        self.num_prefix_hit_tokens = 0
        self._seats = 0  # of the running: an unforked request of n answers sits on n
        self._num_steps = 0
        self._num_arrivals = 0

    def candidate(self) -> Request | None:
        """Return the waiting request that the policy lets join the running ones next, if any."""
        return self.waiting[0] if self.waiting else None

    def add(self, request: Request) -> None:
        """Queue a request behind those that rank before it."""
        time = self._num_steps + request.params.priority * self.priority_steps
        request.rank = (time, self._num_arrivals, request.index)
        self._num_arrivals += 1
        insort(self.waiting, request, key=_rank)

    def has_work(self) -> bool:
        """Say whether any request is waiting or running."""
        return bool(self.waiting or self.running)

    def schedule(self) -> ScheduledBatch:
        """Choose the next step's chunks and allocate their blocks.

        One walk over running and waiting, first in rank first, that shares out the token budget. A
        running sequence that finds no block takes those of the last in rank; so does a waiting
        one that finds no place, from those that rank after it.
        """
        self._num_steps += 1
        budget = self.max_num_batched_tokens
        chunks: list[Chunk] = []
        preempted: list[Request] = []
        admitting = True
        # The running list shrinks from its end while we walk it: only sequences not yet in this
        # step are preempted, because the walk goes from the first to the last in rank.
        i = 0
        while True:
            # A token is kept for each running sequence behind, so that none of them stalls while
            # a long prompt before it takes its steps.
            num_left = len(self.running) - i
            new = self.candidate() if admitting and budget > num_left else None
            if new is not None and (not num_left or new.rank < self.running[i].rank):
                copies = self._admit(new, i, preempted)
                if copies is None:
                    admitting = False
                    continue
            elif num_left:
                copies = self._grow(i, budget - num_left + 1, preempted)
                if copies is None:
                    break
            else:
                break
            # Who was just put out does not come back in the same step.
            admitting = admitting and not preempted
            request = self.running[i]
            start, uncomputed = request.num_computed_tokens, request.num_uncomputed_tokens
            num_tokens = min(uncomputed, budget - (len(self.running) - i - 1))
            chunks.append(
                Chunk(request, start, num_tokens, num_tokens == uncomputed, tuple(copies))
            )
            budget -= num_tokens
            i += 1
        return ScheduledBatch(tuple(chunks), tuple(preempted))

    def advance(self, batch: ScheduledBatch) -> None:
        """Record that the step was computed; call before the sampled tokens are appended.

        Only now do the blocks that it filled get their names: a block is never found by another
        prompt before its keys and values are in memory.
        """
        for chunk in batch.chunks:
            request = chunk.request
            if request.status is not Status.RUNNING:  # aborted in the meantime
                continue
            request.num_computed_tokens = chunk.start + chunk.num_tokens
            if self.prefix_caching:
                first = chunk.start // self.pool.block_size
                last = request.num_computed_tokens // self.pool.block_size
                if first < last:
                    keys = self._keys(request, last)
                    for block in range(first, last):
                        self.pool.name(request.block_table[block], keys[block])

    def fork(self, request: Request, child: Request) -> None:
        """Let `child` run from where `request` is, on the same blocks, in a seat kept for it."""
        request.num_forks -= 1
        child.rank = (*request.rank[:2], child.index)
        child.status = Status.RUNNING
        child.num_computed_tokens = request.num_computed_tokens
        child.block_table = self.pool.fork(request.block_table)
        child.block_keys = list(request.block_keys)
        insort(self.running, child, key=_rank)

    def finish(self, request: Request, *, forget: bool = False) -> None:
        """Take a sequence out, wherever it is, and free its blocks; again is harmless.

        Args:
            forget: its numbers are broken: leave nothing of it in the prefix cache.
        """
        if request.status is Status.WAITING:
            self.waiting.remove(request)
        elif request.status is Status.RUNNING:
            self.running.remove(request)
            self._seats -= request.seats
        self.pool.release(request.block_table, forget=forget)
        request.status = Status.FINISHED

    def _grow(self, i: int, budget: int, preempted: list[Request]) -> list[Copy] | None:
        """Make room for running[i]'s next tokens; None if it was itself the last in rank."""
        request = self.running[i]
        start = request.num_computed_tokens
        end = start + min(request.num_uncomputed_tokens, budget)
        while (copies := self.pool.extend(request.block_table, start, end)) is None:
            preempted.append(self._preempt_last())
            if preempted[-1] is request:
                return None
        return copies

    def _admit(self, request: Request, i: int, preempted: list[Request]) -> list[Copy] | None:
        """Move a waiting request to running[i], or return None if it has to wait."""
        while (hits := self._find_room(request, i)) is None:
            if i == len(self.running):
                return None
            preempted.append(self._preempt_last())
        self.waiting.remove(request)
        self.running.insert(i, request)
        self._seats += request.seats
        request.status = Status.RUNNING
        request.block_table = self.pool.take(hits)
        request.num_computed_tokens = len(hits) * self.pool.block_size
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
            self.num_prefix_query_tokens += request.num_prompt_tokens
            self.num_prefix_hit_tokens += request.num_cached_tokens
        copies = self.pool.extend(
            request.block_table, request.num_computed_tokens, request.num_tokens
        )
        assert copies is not None
        return copies

    def _find_room(self, request: Request, num_before: int) -> list[int] | None:
        """Return what the prefix cache has for a request if there is room for it, else None.

        It needs its seats, blocks for all its known tokens at once, and one spare for each
        sequence that ranks before it: else requests are admitted, half prefilled and preempted
        again. With none before it the spare is zero: what fits alone is always admitted.
        """
        if self._seats + request.seats > self.max_num_seqs:
            return None
        blocks: list[int] = []
        if self.prefix_caching:
            # One token at least is computed, to have logits to sample from.
            most = (request.num_tokens - 1) // self.pool.block_size
            blocks = self.pool.match(self._keys(request, most)[:most])
        needed = self.pool.blocks_for(request.num_tokens) - len(blocks)
        left = self.pool.num_available - self.pool.num_idle(blocks)
        return blocks if needed + num_before <= left else None

    def _keys(self, request: Request, count: int) -> list[bytes]:
        """Return the names of the request's first full blocks, at least `count`; kept with it."""
        keys, size = request.block_keys, self.pool.block_size
        for block in range(len(keys), count):
            parent = keys[-1] if keys else b""
            keys.append(block_key(parent, request.token_ids[block * size : (block + 1) * size]))
        return keys

    def _preempt_last(self) -> Request:
        """Put the running sequence that ranks last back into the queue, without its blocks.

        It keeps its sampled tokens: recomputing their keys and values later is one prefill.
        """
        request = self.running.pop()
        self._seats -= request.seats
        self.pool.release(request.block_table)
        request.status = Status.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        insort(self.waiting, request, key=_rank)
        return request


def _rank(request: Request) -> tuple[int, int, int]:
    return request.rank


class StaticScheduler(Scheduler):
    """Batches that are formed once: nobody joins until the longest answer is complete.

    What waits when the batch before has ended is the next batch, up to max_num_seqs sequences.
    A baseline: it shares the reading of the weights, and leaves seats empty.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._batch: set[str] = set()

    def candidate(self) -> Request | None:
        """Return the first waiting member of the batch; form a new one when none is left."""
        if not self._batch and self.waiting:
            self._batch = self._form()
        return next((r for r in self.waiting if r.request_id in self._batch), None)

    def finish(self, request: Request, *, forget: bool = False) -> None:
        """Take a sequence out, and its request out of the batch when it was its last one."""
        super().finish(request, forget=forget)
        live = (*self.running, *self.waiting)
        if all(other.request_id != request.request_id for other in live):
            self._batch.discard(request.request_id)

    def _form(self) -> set[str]:
        """Return the ids of the requests that make the next batch, at least one."""
        batch: set[str] = set()
        seats = 0
        for request in self.waiting:
            seats += request.seats
            if seats > self.max_num_seqs:
                break
            batch.add(request.request_id)
        return batch


class FifoScheduler(StaticScheduler):
    """One request at a time, from its first token to its last: batches of one."""

    def _form(self) -> set[str]:
        return {self.waiting[0].request_id}


SCHEDULERS: dict[str, type[Scheduler]] = {
    "continuous": Scheduler,
    "static": StaticScheduler,
    "fifo": FifoScheduler,
}
