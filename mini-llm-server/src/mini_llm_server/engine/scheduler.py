"""The scheduler: decides, before each model step, which tokens of which requests it computes.

Prefill and decode are one thing here. Each request has tokens known and tokens computed; a step
computes some of the difference. A decode is a difference of one; a long prompt is spread over
several steps (chunked prefill, the idea: Sarathi-Serve, Agrawal et al. 2024) so that it never
stalls the others; a preempted request just starts again from zero computed tokens.

Pure Python, no torch: tests and simulations run it without a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

from mini_llm_server.engine.kv_cache import BlockPool
from mini_llm_server.engine.request import Request, Status


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, start + num_tokens) of a request, computed in this step."""

    request: Request
    start: int
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether it reaches the last known token, so that the step gives the next one."""
        return self.start + self.num_tokens == self.request.num_tokens


@dataclass(frozen=True)
class ScheduledBatch:
    """One step's work: every chunk's blocks are allocated when it is handed out."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Request, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens the model computes in this step."""
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler(ABC):
    """Queue, running batch, chunking and preemption; a policy only says when to admit.

    Both queues stay in the order of arrival, and all that run arrived before all that wait: the
    oldest request can take the blocks of every other, so it always moves and none starves.

    Args:
        pool: the KV blocks; a request must fit into it alone (the engine refuses others).
        max_num_seqs: most requests in the batch.
        max_num_batched_tokens: most tokens in a step; at least max_num_seqs (`EngineConfig` sees
            to it), so that a step always has room for a decode of each.
    """

    def __init__(self, pool: BlockPool, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0

    @abstractmethod
    def may_admit(self) -> bool:
        """Say whether the policy lets the first waiting request join the running ones now."""

    def add(self, request: Request) -> None:
        """Queue a request behind the others."""
        self.waiting.append(request)

    def has_work(self) -> bool:
        """Say whether any request is waiting or running."""
        return bool(self.waiting or self.running)

    def schedule(self) -> ScheduledBatch:
        """Choose the next step's chunks and allocate their blocks.

        Running requests come first, oldest first; a request that finds no free block takes those
        of the youngest. What is left of the token budget goes to new requests.
        """
        budget = self.max_num_batched_tokens
        chunks: list[Chunk] = []
        preempted: list[Request] = []
        # The running list shrinks from its end while we walk it: only requests not yet in this
        # step are preempted, because the walk is oldest first and the victim is the youngest.
        i = 0
        while i < len(self.running) and budget > 0:
            request = self.running[i]
            num_tokens = min(request.num_uncomputed_tokens, budget)
            while not self.pool.grow(request.block_table, request.num_computed_tokens + num_tokens):
                preempted.append(self._preempt_youngest())
                if preempted[-1] is request:
                    break
            else:
                chunks.append(Chunk(request, request.num_computed_tokens, num_tokens))
                budget -= num_tokens
                i += 1
        if not preempted:  # after a preemption memory is short: admitting would only thrash
            chunks += self._admit(budget)
        return ScheduledBatch(tuple(chunks), tuple(preempted))

    def advance(self, batch: ScheduledBatch) -> None:
        """Record that the step was computed; call before the sampled tokens are appended."""
        for chunk in batch.chunks:
            if chunk.request.status is Status.RUNNING:  # not aborted in the meantime
                chunk.request.num_computed_tokens = chunk.start + chunk.num_tokens

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its blocks; again is harmless."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
        self.pool.release(request.block_table)
        request.status = Status.FINISHED

    def _admit(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        while (
            self.waiting
            and budget > 0
            and len(self.running) < self.max_num_seqs
            and self.may_admit()
        ):
            request = self.waiting[0]
            # Blocks for all its known tokens at once, and one spare for each that runs already:
            # else requests are admitted, half prefilled and preempted again. With nothing
            # running the spare is zero, so a request that fits alone is always admitted.
            needed = self.pool.missing(request.block_table, request.num_tokens)
            if needed + len(self.running) > self.pool.num_free:
                break
            self.pool.grow(request.block_table, request.num_tokens)
            self.waiting.popleft()
            self.running.append(request)
            request.status = Status.RUNNING
            num_tokens = min(request.num_uncomputed_tokens, budget)
            chunks.append(Chunk(request, request.num_computed_tokens, num_tokens))
            budget -= num_tokens
        return chunks

    def _preempt_youngest(self) -> Request:
        """Free the youngest running request's blocks and put it first in the queue.

        It keeps its sampled tokens: recomputing their keys and values later is one prefill.
        """
        request = self.running.pop()
        self.pool.release(request.block_table)
        request.status = Status.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)
        return request


class ContinuousScheduler(Scheduler):
    """A waiting request joins as soon as there is room (the idea: Orca, Yu et al. 2022)."""

    def may_admit(self) -> bool:
        """Admit always."""
        return True


class FifoScheduler(Scheduler):
    """One request at a time, from its first token to its last."""

    def may_admit(self) -> bool:
        """Admit only into an empty batch."""
        return not self.running


SCHEDULERS: dict[str, type[Scheduler]] = {
    "continuous": ContinuousScheduler,
    "fifo": FifoScheduler,
}
