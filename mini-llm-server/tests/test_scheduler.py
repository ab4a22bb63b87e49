"""The scheduler without a model: a dictionary plays the KV cache and remembers what is in it."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from mini_llm_server.engine.kv_cache import BlockPool
from mini_llm_server.engine.request import Request, SamplingParams, Status
from mini_llm_server.engine.scheduler import (
    SCHEDULERS,
    FifoScheduler,
    ScheduledBatch,
    Scheduler,
    StaticScheduler,
)


def request(
    name: str, prompt: int | Sequence[int], max_tokens: int, n: int = 1, priority: int = 0
) -> Request:
    """Return a request; a number of tokens makes a prompt that is like no other's."""
    if isinstance(prompt, int):
        prompt = [zlib.crc32(name.encode()) + i for i in range(prompt)]
    return Request.create(name, prompt, SamplingParams(max_tokens, n=n, priority=priority))


def next_token(sequence: Sequence[int], index: int) -> int:
    """Play the model: a token that depends on all before it, and on which answer it is."""
    return zlib.crc32(repr((index, *sequence)).encode()) % 50


def alone(prompt: Sequence[int], max_tokens: int, index: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens, index))
    return tokens


class Simulation:
    """Runs a scheduler and checks each step as the model would feel it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        # slot -> the sequence up to its token: what keys and values depend on
        self.cache: dict[int, tuple[int, ...]] = {}
        self.sequences: list[Request] = []
        self.first_tokens: list[str] = []  # requests in the order of their first token

    def add(self, *requests: Request) -> None:
        for each in requests:
            self.sequences.append(each)
            self.scheduler.add(each)

    def abort(self, name: str) -> None:
        for each in self.sequences:
            if each.request_id == name:
                self.scheduler.finish(each)  # also after its end: harmless

    def step(self) -> ScheduledBatch:
        scheduler, pool = self.scheduler, self.scheduler.pool
        batch = scheduler.schedule()
        assert 0 < batch.num_tokens <= scheduler.max_num_batched_tokens
        assert sum(r.seats for r in scheduler.running) <= scheduler.max_num_seqs
        assert len({id(c.request) for c in batch.chunks}) == len(batch.chunks)
        self._copy(batch)
        self._write(batch)
        for chunk in batch.chunks:  # after all writes: what it attends to is its own past
            end = chunk.start + chunk.num_tokens
            for position in range(end):
                slot = pool.slot(chunk.request.block_table, position)
                assert self.cache[slot] == tuple(chunk.request.token_ids[: position + 1])
        computed = {id(chunk.request) for chunk in batch.chunks}
        assert not computed & {id(each) for each in batch.preempted}, "out and in again in one step"
        for preempted in batch.preempted:
            assert preempted.status is Status.WAITING
            assert (preempted.block_table, preempted.num_computed_tokens) == ([], 0)
        scheduler.advance(batch)
        for chunk in batch.chunks:
            if chunk.samples:
                self._sample(chunk.request)
        self.check_accounting()
        return batch

    def _copy(self, batch: ScheduledBatch) -> None:
        size = self.scheduler.pool.block_size
        copies = [copy for chunk in batch.chunks for copy in chunk.copies]
        targets = [target for _, target in copies]
        assert len(set(targets)) == len(targets)
        moved = {
            target * size + i: self.cache[source * size + i]
            for source, target in copies
            for i in range(size)
            if source * size + i in self.cache
        }
        self.cache.update(moved)

    def _write(self, batch: ScheduledBatch) -> None:
        pool = self.scheduler.pool
        written: set[int] = set()
        for chunk in batch.chunks:
            assert chunk.request.status is Status.RUNNING
            assert chunk.num_tokens > 0
            for position in range(chunk.start, chunk.start + chunk.num_tokens):
                block = chunk.request.block_table[position // pool.block_size]
                assert pool.references(block) == 1, "it writes into a shared block"
                assert not pool.is_named(block), "it writes into a block that others may find"
                slot = pool.slot(chunk.request.block_table, position)
                assert slot not in written, "a slot is written twice"
                written.add(slot)
                self.cache[slot] = tuple(chunk.request.token_ids[: position + 1])

    def _sample(self, parent: Request) -> None:
        family = [parent, *(parent.fork(i + 1) for i in range(parent.num_forks))]
        for child in family[1:]:
            self.scheduler.fork(parent, child)
            self.sequences.append(child)
        for each in family:
            if each.num_output_tokens == 0 and each.index == 0:
                self.first_tokens.append(each.request_id)
            each.append(next_token(each.token_ids, each.index))
            if each.num_output_tokens == each.params.max_tokens:
                self.scheduler.finish(each)

    def check_accounting(self) -> None:
        scheduler = self.scheduler
        scheduler.pool.verify([r.block_table for r in scheduler.running])
        assert all(not r.block_table for r in scheduler.waiting)
        for queue in (scheduler.running, scheduler.waiting):
            assert [r.rank for r in queue] == sorted(r.rank for r in queue)

    def run(self, max_steps: int) -> int:
        steps = 0
        while self.scheduler.has_work():
            assert steps < max_steps, "it does not end"
            self.step()
            steps += 1
        assert self.scheduler.pool.num_used == 0
        return steps


def continuous(num_blocks: int, block_size: int, seqs: int, tokens: int, **options: Any) -> Any:
    return Simulation(Scheduler(BlockPool(num_blocks, block_size), seqs, tokens, **options))


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals, steps, aborts and preemptions, on any small pool."""

    @initialize(data=st.data())
    def build(self, data: st.DataObject) -> None:
        block_size, num_blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 10))
        self.capacity = num_blocks * block_size
        self.max_num_seqs = data.draw(st.integers(1, 5))
        scheduler = SCHEDULERS[data.draw(st.sampled_from(sorted(SCHEDULERS)))](
            BlockPool(num_blocks, block_size),
            self.max_num_seqs,
            data.draw(st.integers(self.max_num_seqs, 12)),
            prefix_caching=data.draw(st.booleans()),
            priority_steps=data.draw(st.integers(0, 5)),
        )
        self.simulation = Simulation(scheduler)
        self.asked: dict[str, tuple[list[int], int, int]] = {}
        self.aborted: set[str] = set()
        self.work = 0

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(1, self.capacity))
        # Few different tokens, mostly the same at the start: prefixes that meet in the cache.
        prompt = [0] * data.draw(st.integers(0, length))
        prompt += data.draw(
            st.lists(
                st.integers(0, 1), min_size=length - len(prompt), max_size=length - len(prompt)
            )
        )
        max_tokens = data.draw(st.integers(1, min(8, self.capacity - length + 1)))
        n, priority = data.draw(st.integers(1, self.max_num_seqs)), data.draw(st.integers(-2, 2))
        name = str(len(self.asked))
        self.asked[name] = (prompt, max_tokens, n)
        self.simulation.add(request(name, prompt, max_tokens, n, priority))
        self.work += n * (length + max_tokens)

    @rule()
    def step(self) -> None:
        if self.simulation.scheduler.has_work():
            self.simulation.step()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        self.simulation.abort(name)
        self.aborted.add(name)

    @rule()
    def preempt(self) -> None:
        if self.simulation.scheduler.running:
            self.simulation.scheduler._preempt_last()

    @invariant()
    def accounting_is_exact(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.check_accounting()

    def teardown(self) -> None:
        if not hasattr(self, "simulation"):
            return
        # Each step computes some token of the first in rank, and what preemption throws away
        # belongs to others: a sequence ends at most its own work in steps after it became first.
        self.simulation.run(max_steps=self.work + 1)
        answers: dict[str, set[int]] = {}
        for each in self.simulation.sequences:
            assert each.status is Status.FINISHED
            prompt, max_tokens, _ = self.asked[each.request_id]
            expected = alone(prompt, max_tokens, each.index)
            assert each.token_ids == expected[: each.num_tokens]
            if each.request_id not in self.aborted:
                assert each.token_ids == expected
                answers.setdefault(each.request_id, set()).add(each.index)
        for name, (_, _, n) in self.asked.items():
            assert name in self.aborted or answers[name] == set(range(n))


SchedulerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None
)
TestEveryRequestEndsAndNothingLeaks = SchedulerMachine.TestCase


def test_decodes_go_on_while_a_long_prompt_is_prefilled_in_chunks() -> None:
    simulation = continuous(100, 4, seqs=4, tokens=10)
    short, long = request("short", 3, 20), request("long", 35, 2)
    simulation.add(short)
    simulation.step()
    simulation.add(long)
    for computed in (9, 18, 27, 35):
        before = short.num_output_tokens
        simulation.step()
        assert short.num_output_tokens == before + 1
        assert long.num_computed_tokens == computed
    assert long.num_output_tokens == 1  # the last chunk's logits gave its first token


def test_decodes_go_on_while_a_long_prompt_of_higher_priority_is_prefilled() -> None:
    simulation = continuous(100, 4, seqs=4, tokens=10)
    simulation.add(request("a", 3, 20), request("b", 3, 20))
    simulation.step()
    simulation.add(request("urgent", 30, 2, priority=-1))
    for _ in range(3):
        batch = simulation.step()
        assert [(c.request.request_id, c.num_tokens) for c in batch.chunks] == [
            ("urgent", 8), ("a", 1), ("b", 1),
        ]  # fmt: skip
    simulation.run(max_steps=30)


def test_memory_shortage_preempts_the_youngest_and_the_oldest_goes_on() -> None:
    simulation = continuous(5, 2, seqs=4, tokens=16)
    old, young = request("old", 4, 6), request("young", 3, 6)
    simulation.add(old, young)
    while not simulation.scheduler.num_preemptions:
        simulation.step()
    assert (young.status, young.num_preemptions) == (Status.WAITING, 1)
    assert (old.status, old.num_preemptions) == (Status.RUNNING, 0)
    sampled_before = list(young.token_ids)
    simulation.run(max_steps=30)
    assert young.token_ids[: len(sampled_before)] == sampled_before  # it lost no sampled token


def test_nobody_is_admitted_into_the_last_block_that_a_running_one_needs() -> None:
    simulation = continuous(4, 2, seqs=4, tokens=16)
    simulation.add(request("first", 3, 3), request("second", 3, 3))
    assert [c.request.request_id for c in simulation.step().chunks] == ["first"]
    simulation.run(max_steps=20)
    assert simulation.scheduler.num_preemptions == 0


def test_the_scheduler_needs_no_torch() -> None:
    code = "import sys, mini_llm_server.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_queue_keeps_the_order_of_arrival_through_preemption() -> None:
    simulation = continuous(8, 2, seqs=8, tokens=32)
    rng = random.Random(3)
    simulation.add(*(request(f"{i:02}", rng.randint(1, 6), rng.randint(4, 8)) for i in range(12)))
    simulation.run(max_steps=500)
    assert simulation.scheduler.num_preemptions > 0, "the pool is meant to be too small"
    assert simulation.first_tokens == sorted(simulation.first_tokens)


def test_the_first_decode_token_right_at_a_block_edge_gets_a_new_block() -> None:
    simulation = continuous(4, 4, seqs=1, tokens=16)
    edge = request("edge", 8, 2)  # the prompt fills two blocks exactly
    simulation.add(edge)
    simulation.step()
    assert len(edge.block_table) == 2
    batch = simulation.scheduler.schedule()
    assert len(edge.block_table) == 3
    slot = simulation.scheduler.pool.slot(edge.block_table, batch.chunks[0].start)
    assert slot == edge.block_table[2] * 4


def test_a_request_that_grows_to_the_whole_pool_is_served() -> None:
    simulation = continuous(3, 4, seqs=4, tokens=5)
    whole = request("whole", 10, 3)  # its 10 + 2 cached tokens are the pool's 12 slots
    simulation.add(request("other", 2, 2), whole)
    assert simulation.run(max_steps=20) > 0
    assert whole.num_output_tokens == 3


def test_a_second_prompt_that_begins_alike_starts_from_the_first_ones_blocks() -> None:
    simulation = continuous(20, 4, seqs=4, tokens=64)
    first, second = request("first", range(14), 3), request("second", [*range(10), 90, 91], 3)
    simulation.add(first)
    simulation.run(max_steps=5)
    simulation.add(second)
    (chunk,) = simulation.step().chunks
    assert (second.num_cached_tokens, chunk.start, chunk.num_tokens) == (8, 8, 4)
    scheduler = simulation.scheduler
    assert (scheduler.num_prefix_query_tokens, scheduler.num_prefix_hit_tokens) == (26, 8)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_fully_cached_prompt_of_a_multiple_of_the_block_size_computes_its_last_block(
    blocks: int,
) -> None:
    simulation = continuous(20, 4, seqs=4, tokens=64)
    prompt = range(4 * blocks)
    simulation.add(request("first", prompt, 2))
    simulation.run(max_steps=5)
    again = request("again", prompt, 2)
    simulation.add(again)
    (chunk,) = simulation.step().chunks  # logits need at least one token to be computed
    assert (chunk.start, chunk.num_tokens, chunk.samples) == (4 * (blocks - 1), 4, True)
    simulation.run(max_steps=5)


def test_a_block_is_not_found_before_it_is_written() -> None:
    simulation = continuous(20, 4, seqs=4, tokens=64)
    twins = [request(name, range(9), 2) for name in ("one", "two")]
    simulation.add(*twins)
    batch = simulation.step()  # both in one step: the second must not read what the first writes
    assert [chunk.start for chunk in batch.chunks] == [0, 0]
    chunked = continuous(20, 4, seqs=4, tokens=6)
    chunked.add(*(request(name, range(12), 2) for name in ("one", "two")))
    chunked.step()  # tokens 0-5 of the first: of its three blocks one is full
    chunked.step()  # its last tokens; the budget is used
    (second,) = (r for r in chunked.sequences if r.request_id == "two")
    chunked.step()
    assert second.num_cached_tokens == 8
    chunked.run(max_steps=10)


def test_a_preempted_sequence_comes_back_through_the_prefix_cache() -> None:
    simulation = continuous(20, 2, seqs=4, tokens=16)
    it = request("it", 5, 8)
    simulation.add(it)
    for _ in range(4):
        simulation.step()
    simulation.scheduler._preempt_last()
    (chunk,) = simulation.step().chunks
    assert chunk.start == 8  # 5 of the prompt and 4 sampled: all but the last token's block
    assert it.num_cached_tokens == 0  # what it finds of its own is no hit of its prompt
    simulation.run(max_steps=20)


def test_n_answers_compute_their_prompt_once_and_share_its_blocks() -> None:
    simulation = continuous(40, 4, seqs=4, tokens=64)
    simulation.add(request("it", 10, 5, n=4))
    assert simulation.step().num_tokens == 10
    assert simulation.scheduler.pool.num_used == 3
    assert len(simulation.scheduler.running) == 4
    batch = simulation.step()  # all write into the prompt's last block: the last one needs no copy
    assert [len(chunk.copies) for chunk in batch.chunks] == [1, 1, 1, 0]
    assert simulation.scheduler.pool.num_used == 2 + 4
    simulation.run(max_steps=10)
    assert len({tuple(each.token_ids) for each in simulation.sequences}) == 4


def test_a_request_waits_until_all_its_answers_have_seats() -> None:
    simulation = continuous(40, 4, seqs=4, tokens=64)
    simulation.add(request("one", 3, 6), request("four", 3, 4, n=4), request("later", 3, 2))
    simulation.step()
    assert [r.request_id for r in simulation.scheduler.running] == ["one"]  # and none overtakes
    simulation.run(max_steps=30)
    assert simulation.first_tokens == ["one", "four", "later"]


def test_a_higher_priority_takes_a_seat_from_a_lower_one_at_once() -> None:
    simulation = continuous(40, 4, seqs=2, tokens=64)
    simulation.add(request("a", 3, 20), request("b", 3, 20))
    simulation.step()
    simulation.add(request("urgent", 3, 3, priority=-1))
    simulation.step()
    assert [r.request_id for r in simulation.scheduler.running] == ["urgent", "a"]
    assert simulation.first_tokens == ["a", "b", "urgent"]
    simulation.run(max_steps=60)


def test_a_low_priority_is_overtaken_only_by_what_comes_soon_after_it() -> None:
    simulation = continuous(40, 4, seqs=1, tokens=8, priority_steps=10)
    simulation.add(request("low", 3, 2, priority=3))
    for i in range(60):  # one request after the other, each enough to keep the engine busy
        simulation.add(request(f"high{i}", 3, 2))
        simulation.step()
        simulation.step()
    simulation.run(max_steps=200)
    place = simulation.first_tokens.index("low")
    assert 5 < place < 20  # 30 steps late, and not after the 60


def test_static_batches_admit_nobody_until_the_longest_answer_ends() -> None:
    simulation = Simulation(StaticScheduler(BlockPool(100, 4), 3, 16))
    lengths = [2, 9, 4, 3, 3]
    simulation.add(*(request(str(i), 6, length) for i, length in enumerate(lengths)))
    seen: list[set[str]] = []
    while simulation.scheduler.has_work():
        names = {chunk.request.request_id for chunk in simulation.step().chunks}
        if not seen or not names <= seen[-1]:
            seen.append(names if not seen or names.isdisjoint(seen[-1]) else seen.pop() | names)
    assert seen == [{"0", "1", "2"}, {"3", "4"}]
    assert simulation.first_tokens == ["0", "1", "2", "3", "4"]


def test_static_batches_with_priorities_end() -> None:
    simulation = Simulation(StaticScheduler(BlockPool(100, 4), 3, 3))
    simulation.add(*(request(str(i), 6, 3) for i in range(3)))
    simulation.step()  # the budget lets one of the batch begin
    simulation.add(request("urgent", 2, 2, priority=-1))  # ranks first, and is no member
    simulation.run(max_steps=60)
    assert simulation.first_tokens[-1] == "urgent"


def test_fifo_runs_one_request_from_its_first_token_to_its_last() -> None:
    simulation = Simulation(FifoScheduler(BlockPool(100, 4), 8, 16))
    requests = [request(str(i), 3 + i, 4, n=1 + i % 2) for i in range(5)]
    simulation.add(*requests)
    done: list[Request] = []
    while simulation.scheduler.has_work():
        assert len({chunk.request.request_id for chunk in simulation.step().chunks}) == 1
        done += [r for r in requests if r.status is Status.FINISHED and r not in done]
    assert done == requests
