"""The engine's answers against transformers' greedy decoding of each prompt alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_llm_server.engine.engine import Engine, EngineConfig
from mini_llm_server.engine.request import Output, QueueFull, RequestTooLarge, SamplingParams
from mini_llm_server.model.dummy import DUMMY_CONFIG, random_weights
from mini_llm_server.model.linear import Way
from mini_llm_server.model.loader import LoadedModel
from mini_llm_server.model.tokenizer import ByteTokenizer
from mini_llm_server.model.transformer import Llama

MakeEngine = Callable[..., Engine]
RunAll = Callable[..., dict[str, list[Output]]]
Reference = Callable[[Any, int], list[int]]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens, temperature=0, ignore_eos=True)


def tokens_of(outputs: list[Output]) -> list[int]:
    return [o.token_id for o in outputs if o.token_id is not None]


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def test_steps_attend_without_cudnn(
    make_engine: MakeEngine, run_all: RunAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """test_engine_gpu.py says why; here only that it is switched off, and on again."""
    allowed: list[bool] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments: Any, **options: Any) -> torch.Tensor:
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    engine = make_engine()
    engine.add("a", [65, 66, 67], greedy(2))
    run_all(engine)
    assert allowed
    assert not any(allowed)
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("scheduler", ["continuous", "static", "fifo"])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"block_size": 1, "num_blocks": 200},
        {"max_num_batched_tokens": 6, "max_num_seqs": 5},  # prompts in chunks, few at a time
        {"num_blocks": 9},  # 36 slots: preempts again and again
    ],
)
def test_answers_equal_each_prompt_alone(
    make_engine: MakeEngine,
    run_all: RunAll,
    reference_greedy: Reference,
    scheduler: str,
    limits: dict[str, int],
) -> None:
    engine = make_engine(scheduler=scheduler, **limits)
    asked = prompts(7, longest=20)
    for i, prompt in enumerate(asked):
        engine.add(str(i), prompt, greedy(5 + i))
    outputs = run_all(engine)
    for i, prompt in enumerate(asked):
        assert tokens_of(outputs[str(i)]) == reference_greedy(prompt, 5 + i)
    stats = engine.stats()
    assert (stats.preemptions > 0) == (limits.get("num_blocks") == 9 and scheduler != "fifo")
    assert stats.prompt_tokens == sum(map(len, asked))
    assert stats.output_tokens == sum(5 + i for i in range(7))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_answers_stay_right_through_arrivals_aborts_and_preemptions(
    tiny: LoadedModel, run_all: RunAll, reference_greedy: Reference, data: st.DataObject
) -> None:
    engine = Engine(
        tiny,
        EngineConfig(
            num_blocks=data.draw(st.integers(8, 20)),
            block_size=data.draw(st.integers(1, 3)),
            max_num_seqs=data.draw(st.integers(1, 4)),
            max_num_batched_tokens=data.draw(st.integers(4, 16)),
        ),
    )
    asked = prompts(6, longest=5, seed=data.draw(st.integers(0, 3)))
    outputs: dict[str, list[Output]] = {}
    for i, prompt in enumerate(asked):
        engine.add(str(i), prompt, greedy(4))
        for _ in range(data.draw(st.integers(0, 3))):
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
    aborted = data.draw(st.sets(st.integers(0, 5)))
    for i in aborted:
        engine.abort(str(i))
    for name, rest in run_all(engine).items():
        assert int(name) not in aborted
        outputs.setdefault(name, []).extend(rest)
    for i, prompt in enumerate(asked):
        expected = reference_greedy(prompt, 4)
        seen = tokens_of(outputs.get(str(i), []))
        assert seen == (expected[: len(seen)] if i in aborted else expected)


@pytest.mark.parametrize("num_prompt", [3, 4, 5, 8])
def test_the_first_decode_token_right_at_a_block_edge(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Reference, num_prompt: int
) -> None:
    engine = make_engine(block_size=4)
    prompt = list(range(10, 10 + num_prompt))
    engine.add("edge", prompt, greedy(6))
    assert tokens_of(run_all(engine)["edge"]) == reference_greedy(prompt, 6)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_fully_cached_prompt_of_a_multiple_of_the_block_size(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Reference, blocks: int
) -> None:
    engine = make_engine(block_size=4)
    prompt = list(range(30, 30 + 4 * blocks))
    for name in ("first", "again"):
        engine.add(name, prompt, greedy(6))
        outputs = run_all(engine)[name]
        assert tokens_of(outputs) == reference_greedy(prompt, 6)
    assert outputs[-1].cached_tokens == 4 * (blocks - 1)
    assert engine.stats().prefix_hit_tokens == 4 * (blocks - 1)


def test_a_prompt_never_starts_from_a_block_that_is_not_yet_written(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Reference
) -> None:
    engine = make_engine(block_size=4, max_num_batched_tokens=32)
    prompt = list(range(40, 53))
    for name in ("one", "two", "three"):  # all admitted by one step, before any block is written
        engine.add(name, prompt, greedy(6))
    for outputs in run_all(engine).values():
        assert tokens_of(outputs) == reference_greedy(prompt, 6)


def test_preemption_then_a_prefix_hit(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Reference
) -> None:
    engine = make_engine(num_blocks=9, block_size=2)
    beginning = [9, 8, 7, 6, 5]
    for i in range(4):  # together they outgrow the pool; what comes back finds its own beginning
        engine.add(str(i), [*beginning, i], greedy(8))
    outputs = run_all(engine)
    assert engine.stats().preemptions > 0
    assert engine.stats().prefix_hit_tokens > 0
    for i in range(4):
        assert tokens_of(outputs[str(i)]) == reference_greedy([*beginning, i], 8)


def test_a_conversation_goes_on_from_its_own_answer(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Reference
) -> None:
    engine = make_engine(block_size=4)
    conversation = [3, 1, 4, 1, 5]
    for turn in range(3):
        engine.add("it", conversation, greedy(7))
        outputs = run_all(engine)["it"]
        assert tokens_of(outputs) == reference_greedy(conversation, 7)
        assert (outputs[-1].cached_tokens > 5) == (turn > 0)  # of the answer too, not the prompt's
        conversation = [*conversation, *tokens_of(outputs), 60 + turn]


def test_without_prefix_caching_nothing_is_kept(make_engine: MakeEngine, run_all: RunAll) -> None:
    engine = make_engine(prefix_caching=False)
    for name in ("first", "again"):
        engine.add(name, list(range(20)), greedy(3))
        assert run_all(engine)[name][-1].cached_tokens == 0
    stats = engine.stats()
    assert (stats.blocks_free, stats.blocks_cached) == (stats.blocks_total, 0)


def test_a_pool_full_of_cached_blocks_serves_other_prompts(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Reference
) -> None:
    engine = make_engine(num_blocks=8, block_size=2)
    for i in range(12):
        engine.add(str(i), [i] * 9, greedy(4))
        assert tokens_of(run_all(engine)[str(i)]) == reference_greedy([i] * 9, 4)
    assert engine.stats().blocks_cached > 4


def test_blocks_held_while_nothing_runs_are_reported_and_not_served_from(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    engine._pool.extend([], 0, 4)  # a leak
    engine.add("it", [1, 2], greedy(1))
    with pytest.raises(RuntimeError, match="held though nothing runs"):
        engine.step()


def test_scheduling_is_timed_apart_from_the_model(make_engine: MakeEngine, run_all: RunAll) -> None:
    engine = make_engine()
    for i in range(8):
        engine.add(str(i), [i] * 9, greedy(6))
    run_all(engine)
    stats = engine.stats()
    assert 0 < stats.scheduling_seconds < stats.step_seconds


def test_a_request_that_would_outgrow_the_pool_is_refused_and_the_largest_that_fits_is_served(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Reference
) -> None:
    engine = make_engine(num_blocks=5, block_size=4)  # 20 slots
    prompt = list(range(15))
    with pytest.raises(RequestTooLarge, match=r"15 prompt tokens and max_tokens 7 .* 20"):
        engine.add("large", prompt, greedy(7))
    assert not engine.has_work()
    engine.add("fits", prompt, greedy(6))  # 15 + 6 - 1: the last token is never cached
    engine.add("beside", [1, 2], greedy(6))
    outputs = run_all(engine)
    assert tokens_of(outputs["fits"]) == reference_greedy(prompt, 6)
    assert tokens_of(outputs["beside"]) == reference_greedy([1, 2], 6)


def test_a_request_longer_than_the_context_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(max_model_len=16)
    engine.add("fits", [1] * 10, greedy(6))
    with pytest.raises(RequestTooLarge, match="limit of 16"):
        engine.add("large", [1] * 10, greedy(7))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([3, 259], "259"), ([-1], "-1"), ([2**70], "ids go from 0 to 258")],
)
def test_prompts_that_no_model_can_read_are_refused(
    make_engine: MakeEngine, prompt: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_engine().add("bad", prompt, greedy(2))


def test_a_full_queue_and_an_id_in_use_are_refused(
    make_engine: MakeEngine, run_all: RunAll
) -> None:
    engine = make_engine(max_waiting=2)
    engine.add("a", [1], greedy(2))
    with pytest.raises(ValueError, match="in use"):
        engine.add("a", [1], greedy(2))
    engine.add("b", [1], greedy(2))
    with pytest.raises(QueueFull, match="2 requests"):
        engine.add("c", [1], greedy(2))
    run_all(engine)
    engine.add("a", [1], greedy(2))  # its id is free again


def test_aborting_frees_blocks_at_once_and_twice_is_harmless(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add("running", [1] * 9, greedy(20))
    engine.step()
    engine.add("waiting", [1] * 9, greedy(20))
    assert engine.stats().blocks_used > 0
    for name in ("running", "running", "waiting", "unknown"):
        engine.abort(name)
    assert (engine.stats().blocks_used, engine.has_work(), engine.step()) == (0, False, [])


def test_a_seed_gives_the_same_answer_alone_in_company_and_through_preemption(
    make_engine: MakeEngine, run_all: RunAll
) -> None:
    params = SamplingParams(12, temperature=1.5, seed=42, ignore_eos=True)
    alone = make_engine()
    alone.add("it", [5, 6, 7], params)
    expected = tokens_of(run_all(alone)["it"])

    crowded = make_engine(num_blocks=8)
    for i, prompt in enumerate(prompts(4, longest=4)):
        crowded.add(str(i), prompt, SamplingParams(12, top_p=0.9, ignore_eos=True))
    crowded.add("it", [5, 6, 7], params)
    assert tokens_of(run_all(crowded)["it"]) == expected
    assert crowded.stats().preemptions > 0


def test_float32_answers_have_the_same_bits_alone_and_in_company_while_steps_are_small(
    run_all: RunAll,
) -> None:
    config = replace(DUMMY_CONFIG, vocab_size=260)  # a whole number of the kernel's tiles
    model = Llama(config, random_weights(config), torch.float32, torch.device("cpu"))
    if model.head.way is not Way.SKINNY:
        pytest.skip("this machine multiplies by a library, which promises nothing of the kind")
    loaded = LoadedModel(model, ByteTokenizer(), config, "float32")
    asked = prompts(8, longest=11)
    params = SamplingParams(9, temperature=1.1, seed=6, logprobs=4, ignore_eos=True)

    def answer(names: list[int]) -> dict[str, list[Any]]:
        engine = Engine(loaded, EngineConfig(num_blocks=200))
        for i in names:
            engine.add(str(i), asked[i], params)
        return {name: [o.logprobs for o in out] for name, out in run_all(engine).items()}

    together = answer(list(range(8)))
    for i in range(8):
        assert answer([i])[str(i)] == together[str(i)]  # to the last bit of each probability


def test_without_a_seed_answers_differ_but_follow_the_engines_seed(
    make_engine: MakeEngine, run_all: RunAll
) -> None:
    def answers(seed: int) -> list[list[int]]:
        engine = make_engine(seed=seed)
        for i in range(3):
            engine.add(str(i), [5, 6, 7], SamplingParams(8, ignore_eos=True))
        outputs = run_all(engine)
        return [tokens_of(outputs[str(i)]) for i in range(3)]

    assert answers(0) == answers(0) != answers(1)
    assert len({tuple(a) for a in answers(0)}) == 3


def test_a_request_whose_numbers_break_ends_with_an_error_and_its_neighbours_do_not(
    tiny: LoadedModel, run_all: RunAll, reference_greedy: Reference
) -> None:
    model = copy.copy(tiny.model)
    model.embedding = tiny.model.embedding.clone()
    model.embedding[200] = torch.nan  # whoever reads token 200 gets NaN from there on
    engine = Engine(replace(tiny, model=model), EngineConfig(num_blocks=12, block_size=4))
    healthy = [[1, 2, 3], [4] * 9]
    for round_ in range(2):  # its NaN stays behind in the pool's first slot
        engine.add(f"broken{round_}", [200, 7, 9], greedy(5))
        for i, prompt in enumerate(healthy):
            engine.add(f"{round_}{i}", prompt, greedy(6))
        outputs = run_all(engine)
        (broken,) = outputs[f"broken{round_}"]
        assert (broken.finish_reason, broken.token_id) == ("error", None)
        assert "not finite" in broken.error
        for i, prompt in enumerate(healthy):
            assert tokens_of(outputs[f"{round_}{i}"]) == reference_greedy(prompt, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "lifo"}, "lifo"),
        ({"max_model_len": 4096}, "4096"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"block_size": 0}, "block_size"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_seqs": 600}, "max_num_seqs"),
    ],
)
def test_settings_out_of_range_are_named(
    tiny: LoadedModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(tiny, EngineConfig(**options))
