"""The scheduler without a model: a dictionary plays the KV cache and remembers who wrote what."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from mini_llm_server.engine.kv_cache import BlockPool
from mini_llm_server.engine.request import Request, SamplingParams, Status
from mini_llm_server.engine.scheduler import (
    SCHEDULERS,
    ContinuousScheduler,
    FifoScheduler,
    Scheduler,
)


def request(name: str, num_prompt: int, max_tokens: int) -> Request:
    return Request.create(name, range(num_prompt), SamplingParams(max_tokens))


class Simulation:
    """Runs a scheduler and checks each step as the model would feel it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.written: dict[int, tuple[str, int]] = {}  # slot -> (request, position) last written
        self.first_tokens: list[str] = []  # requests in the order of their first token

    def step(self) -> None:
        scheduler = self.scheduler
        batch = scheduler.schedule()
        assert 0 < batch.num_tokens <= scheduler.max_num_batched_tokens
        assert len(batch.chunks) <= len(scheduler.running) <= scheduler.max_num_seqs
        assert len({c.request.request_id for c in batch.chunks}) == len(batch.chunks)
        for chunk in batch.chunks:
            assert chunk.request.status is Status.RUNNING
            assert chunk.num_tokens > 0
            for position in range(chunk.start, chunk.start + chunk.num_tokens):
                slot = scheduler.pool.slot(chunk.request.block_table, position)
                self.written[slot] = (chunk.request.request_id, position)
        for chunk in batch.chunks:  # after all writes: everything a chunk attends to is its own
            for position in range(chunk.start + chunk.num_tokens):
                slot = scheduler.pool.slot(chunk.request.block_table, position)
                assert self.written[slot] == (chunk.request.request_id, position)
        for preempted in batch.preempted:
            assert preempted.status is Status.WAITING
            assert (preempted.block_table, preempted.num_computed_tokens) == ([], 0)
        scheduler.advance(batch)
        for chunk in batch.chunks:
            if chunk.start + chunk.num_tokens == chunk.request.num_tokens:
                if chunk.request.num_output_tokens == 0:
                    self.first_tokens.append(chunk.request.request_id)
                chunk.request.token_ids.append(7)
                if chunk.request.num_output_tokens == chunk.request.params.max_tokens:
                    scheduler.finish(chunk.request)
        self.check_accounting()

    def check_accounting(self) -> None:
        pool = self.scheduler.pool
        held = [b for r in self.scheduler.running for b in r.block_table]
        assert len(held) == len(set(held)) == pool.num_used
        assert pool.num_free + pool.num_used == pool.num_blocks
        assert all(not r.block_table for r in self.scheduler.waiting)

    def run(self, max_steps: int) -> int:
        steps = 0
        while self.scheduler.has_work():
            assert steps < max_steps, "it does not end"
            self.step()
            steps += 1
        assert self.scheduler.pool.num_used == 0
        return steps


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_request_ends_and_nothing_leaks(data: st.DataObject) -> None:
    policy = data.draw(st.sampled_from(sorted(SCHEDULERS)))
    block_size = data.draw(st.integers(1, 4))
    num_blocks = data.draw(st.integers(1, 10))
    max_num_seqs = data.draw(st.integers(1, 5))
    budget = data.draw(st.integers(max_num_seqs, 12))
    simulation = Simulation(
        SCHEDULERS[policy](BlockPool(num_blocks, block_size), max_num_seqs, budget)
    )
    capacity = num_blocks * block_size
    requests: list[Request] = []
    work = 0
    for _ in range(data.draw(st.integers(0, 25))):
        action = data.draw(st.sampled_from(["add", "step", "step", "abort"]))
        if action == "add":
            prompt = data.draw(st.integers(1, capacity))
            output = data.draw(st.integers(1, min(8, capacity - prompt + 1)))
            requests.append(request(str(len(requests)), prompt, output))
            simulation.scheduler.add(requests[-1])
            work += prompt + output
        elif action == "step" and simulation.scheduler.has_work():
            simulation.step()
        elif action == "abort" and requests:
            victim = data.draw(st.sampled_from(requests))
            simulation.scheduler.finish(victim)  # also twice, and after its end: harmless
            simulation.check_accounting()
    # Each step computes some token of the oldest request, and what preemption throws away belongs
    # to younger ones: a request ends at most its own work in steps after it became the oldest.
    simulation.run(max_steps=work + 1)
    assert all(r.status is Status.FINISHED for r in requests)


def test_decodes_go_on_while_a_long_prompt_is_prefilled_in_chunks() -> None:
    scheduler = ContinuousScheduler(BlockPool(100, 4), max_num_seqs=4, max_num_batched_tokens=10)
    short, long = request("short", 3, 20), request("long", 35, 2)
    simulation = Simulation(scheduler)
    scheduler.add(short)
    simulation.step()
    scheduler.add(long)
    for computed in (9, 18, 27, 35):
        before = short.num_output_tokens
        simulation.step()
        assert short.num_output_tokens == before + 1
        assert long.num_computed_tokens == computed
    assert long.num_output_tokens == 1  # the last chunk's logits gave its first token


def test_memory_shortage_preempts_the_youngest_and_the_oldest_goes_on() -> None:
    scheduler = ContinuousScheduler(BlockPool(5, 2), max_num_seqs=4, max_num_batched_tokens=16)
    old, young = request("old", 4, 6), request("young", 3, 6)
    scheduler.add(old)
    scheduler.add(young)
    simulation = Simulation(scheduler)
    while not scheduler.num_preemptions:
        simulation.step()
    assert (young.status, young.num_preemptions) == (Status.WAITING, 1)
    assert (old.status, old.num_preemptions) == (Status.RUNNING, 0)
    sampled_before = list(young.token_ids)
    simulation.run(max_steps=30)
    assert young.token_ids[: len(sampled_before)] == sampled_before  # it lost no sampled token


def test_the_queue_keeps_the_order_of_arrival_through_preemption() -> None:
    scheduler = ContinuousScheduler(BlockPool(8, 2), max_num_seqs=8, max_num_batched_tokens=32)
    rng = random.Random(3)
    for i in range(12):
        scheduler.add(request(f"{i:02}", rng.randint(1, 6), rng.randint(4, 8)))
    simulation = Simulation(scheduler)
    simulation.run(max_steps=500)
    assert scheduler.num_preemptions > 0, "the pool is meant to be too small"
    assert simulation.first_tokens == sorted(simulation.first_tokens)


def test_the_first_decode_token_right_at_a_block_edge_gets_a_new_block() -> None:
    pool = BlockPool(4, 4)
    scheduler = ContinuousScheduler(pool, max_num_seqs=1, max_num_batched_tokens=16)
    edge = request("edge", 8, 2)  # the prompt fills two blocks exactly
    scheduler.add(edge)
    simulation = Simulation(scheduler)
    simulation.step()
    assert len(edge.block_table) == 2
    batch = scheduler.schedule()
    assert len(edge.block_table) == 3
    assert pool.slot(edge.block_table, batch.chunks[0].start) == edge.block_table[2] * 4


def test_a_request_that_needs_every_block_is_served() -> None:
    scheduler = ContinuousScheduler(BlockPool(3, 4), max_num_seqs=4, max_num_batched_tokens=5)
    whole = request("whole", 10, 3)  # its 10 + 2 cached tokens are the pool's 12 slots
    scheduler.add(request("other", 2, 2))
    scheduler.add(whole)
    assert Simulation(scheduler).run(max_steps=20) > 0
    assert whole.num_output_tokens == 3


def test_fifo_runs_one_request_from_its_first_token_to_its_last() -> None:
    scheduler = FifoScheduler(BlockPool(100, 4), max_num_seqs=8, max_num_batched_tokens=16)
    requests = [request(str(i), 3 + i, 4) for i in range(5)]
    for r in requests:
        scheduler.add(r)
    simulation = Simulation(scheduler)
    done: list[Request] = []
    while scheduler.has_work():
        simulation.step()
        assert len(scheduler.running) <= 1
        done += [r for r in requests if r.status is Status.FINISHED and r not in done]
    assert done == requests
