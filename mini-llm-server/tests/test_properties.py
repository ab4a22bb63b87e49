"""The whole engine as a state machine: any order of arrivals, steps, aborts and preemptions.

Whatever happens to a request, its answers are those that it gets alone: greedy ones equal
transformers' decoding without any cache, drawn ones those of an engine that runs nothing else. In
float64, where no two tokens are so close that the order of a sum decides between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mini_llm_server.engine.engine import Engine, EngineConfig
from mini_llm_server.engine.request import Output, SamplingParams
from mini_llm_server.model.loader import LoadedModel

# Prompts that share beginnings of several lengths, one of which is a whole number of blocks.
PROMPTS = [
    [1, 2, 3],
    [1, 2, 3, 4],
    [1, 2, 3, 4, 5, 6, 7, 8],
    [1, 2, 3, 4, 9, 9, 9],
    [1, 2, 3, 4, 5, 6, 7, 8, 20, 21],
    [50],
    [7] * 12,
]
PARAMS = [
    SamplingParams(1, temperature=0, ignore_eos=True),
    SamplingParams(7, temperature=0, ignore_eos=True),
    SamplingParams(5, temperature=1.5, seed=3, ignore_eos=True),
    SamplingParams(6, temperature=1.0, top_p=0.7, top_k=50, seed=8, n=2, ignore_eos=True),
    SamplingParams(4, temperature=1.2, seed=1, n=3, frequency_penalty=1.0, ignore_eos=True),
    SamplingParams(9, temperature=2.0, min_p=0.01, seed=2, priority=-1),
    SamplingParams(4, temperature=0, priority=2, ignore_eos=True),
]


class EngineMachine(RuleBasedStateMachine):
    """See the module."""

    tiny: ClassVar[LoadedModel]
    reference_greedy: ClassVar[Callable[[Sequence[int], int], list[int]]]
    known: ClassVar[dict[tuple[int, int], list[list[int]]]] = {}

    @initialize(
        scheduler=st.sampled_from(["continuous", "continuous", "static", "fifo"]),
        block_size=st.sampled_from([1, 2, 4]),
        spare=st.integers(0, 12),
        max_num_seqs=st.integers(3, 6),
        budget=st.integers(6, 24),
        prefix_caching=st.booleans(),
    )
    def build(self, scheduler: Any, block_size: int, spare: int, **options: Any) -> None:
        longest = max(map(len, PROMPTS)) + max(params.max_tokens for params in PARAMS) - 1
        budget = options.pop("budget")
        config = EngineConfig(
            scheduler=scheduler,
            block_size=block_size,
            num_blocks=-(-longest // block_size) + spare,
            max_num_batched_tokens=budget,
            priority_steps=3,
            **options,
        )
        self.engine = Engine(self.tiny, config)
        self.asked: dict[str, tuple[int, int]] = {}
        self.answers: dict[str, list[list[int]]] = {}
        self.unfinished: dict[str, set[int]] = {}

    @rule(
        arrivals=st.lists(
            st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(0, len(PARAMS) - 1)),
            min_size=1,
            max_size=4,
        ),
        steps=st.integers(0, 3),
    )
    def add(self, arrivals: list[tuple[int, int]], steps: int) -> None:
        for prompt, params in arrivals:
            name = str(len(self.asked))
            self.engine.add(name, PROMPTS[prompt], PARAMS[params])
            self.asked[name] = (prompt, params)
            self.answers[name] = [[] for _ in range(PARAMS[params].n)]
            self.unfinished[name] = set(range(PARAMS[params].n))
        self.step(steps)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self._take(self.engine.step())

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.unfinished)))
        self.engine.abort(name)
        del self.unfinished[name]
        self._compare(name)

    @rule()
    def preempt(self) -> None:
        if self.engine._scheduler.running:
            self.engine._scheduler._preempt_last()

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "engine"):
            stats = self.engine.stats()
            counted = stats.blocks_free + stats.blocks_cached + stats.blocks_used
            assert counted == stats.blocks_total
            tables = [request.block_table for request in self.engine._scheduler.running]
            self.engine._pool.verify(tables)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(400 + 400 * len(self.asked)):
            if not self.engine.has_work():
                break
            self._take(self.engine.step())
        assert not self.engine.has_work()
        assert not self.unfinished
        assert self.engine.stats().blocks_used == 0
        assert not self.engine._live

    def _take(self, outputs: list[Output]) -> None:
        for output in outputs:
            name, index = output.request_id, output.index
            assert index in self.unfinished[name], "it speaks after its end"
            assert output.token_id is not None
            self.answers[name][index].append(output.token_id)
            if output.finish_reason is not None:
                self.unfinished[name].remove(index)
                if not self.unfinished[name]:
                    del self.unfinished[name]
                    self._compare(name, whole=True)

    def _compare(self, name: str, whole: bool = False) -> None:
        for got, alone in zip(self.answers[name], self._alone(*self.asked[name]), strict=True):
            assert got == (alone if whole else alone[: len(got)])

    def _alone(self, prompt: int, params: int) -> list[list[int]]:
        if (prompt, params) not in self.known:
            asked = PARAMS[params]
            if asked.temperature == 0:
                expected = [self.reference_greedy(PROMPTS[prompt], asked.max_tokens)]
            else:
                engine = Engine(self.tiny, EngineConfig(num_blocks=99, prefix_caching=False))
                engine.add("alone", PROMPTS[prompt], asked)
                expected = [[] for _ in range(asked.n)]
                while engine.has_work():
                    for output in engine.step():
                        assert output.token_id is not None
                        expected[output.index].append(output.token_id)
            self.known[prompt, params] = expected
        return self.known[prompt, params]


@pytest.fixture
def machine(
    tiny: LoadedModel, reference_greedy: Callable[[Sequence[int], int], list[int]]
) -> type[EngineMachine]:
    class Machine(EngineMachine):
        known: ClassVar[dict[tuple[int, int], list[list[int]]]] = {}

    Machine.tiny = tiny
    Machine.reference_greedy = staticmethod(reference_greedy)
    return Machine


def test_answers_are_those_of_each_request_alone(machine: type[EngineMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=100, stateful_step_count=20, deadline=None)
    )


@pytest.mark.slow
def test_answers_are_those_of_each_request_alone_in_many_more_orders(
    machine: type[EngineMachine],
) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=600, stateful_step_count=40, deadline=None)
    )
