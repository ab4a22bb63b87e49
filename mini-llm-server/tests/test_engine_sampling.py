"""Sampling fields in the engine: penalties, biases, log-probabilities, n, structures, ends.

The model is the tiny float64 one; what it should have said is computed from transformers' logits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from mini_llm_server.engine.engine import Engine, EngineConfig
from mini_llm_server.engine.request import Output, ParameterError, SamplingParams, Structure
from mini_llm_server.model.dummy import DUMMY_CONFIG, random_weights
from mini_llm_server.model.loader import LoadedModel
from mini_llm_server.model.tokenizer import ByteTokenizer
from mini_llm_server.model.transformer import Llama

MakeEngine = Callable[..., Engine]
RunAll = Callable[..., dict[str, list[Output]]]
Logits = Callable[[Sequence[int]], torch.Tensor]
PROMPT = [72, 105, 32, 116, 104, 101, 114, 101]


@pytest.fixture(scope="module")
def logits_after(transformers_llama: Callable[..., Any]) -> Logits:
    """Return transformers' logits [V] of the token that follows."""
    model = transformers_llama(DUMMY_CONFIG, random_weights(DUMMY_CONFIG))

    def logits(ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([list(ids)])).logits[0, -1]

    return logits


def answers(outputs: list[Output]) -> dict[int, list[Output]]:
    found: dict[int, list[Output]] = {}
    for output in outputs:
        found.setdefault(output.index, []).append(output)
    return found


def tokens_of(outputs: list[Output]) -> list[int]:
    return [o.token_id for o in outputs if o.token_id is not None]


def text_of(outputs: list[Output]) -> str:
    return "".join(o.text for o in outputs)


def one(engine: Engine, run_all: RunAll, params: SamplingParams) -> list[Output]:
    engine.add("it", PROMPT, params)
    return run_all(engine)["it"]


@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"frequency_penalty": 1.5},
        {"frequency_penalty": -0.7},
        {"presence_penalty": 2.0},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    ],
)
def test_penalties_follow_their_formulas(
    make_engine: MakeEngine, run_all: RunAll, logits_after: Logits, penalties: dict[str, float]
) -> None:
    params = SamplingParams(12, temperature=0, ignore_eos=True, **penalties)  # type: ignore[arg-type]
    ids = list(PROMPT)
    for _ in range(12):
        logits = logits_after(ids).clone()
        for token in set(ids):
            factor = params.repetition_penalty
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
            count = ids[len(PROMPT) :].count(token)
            logits[token] -= count * params.frequency_penalty
            logits[token] -= (count > 0) * params.presence_penalty
        ids.append(int(logits.argmax()))
    engine = make_engine()
    # Beside requests with other wishes, whose rows stand around it.
    for i in range(3):
        engine.add(str(i), [i, 2], SamplingParams(9, frequency_penalty=0.3 * i, seed=i))
    engine.add("it", PROMPT, params)
    assert tokens_of(run_all(engine)["it"]) == ids[len(PROMPT) :]


def test_penalties_and_seed_survive_preemption(make_engine: MakeEngine, run_all: RunAll) -> None:
    params = SamplingParams(
        12, temperature=1.2, seed=4, presence_penalty=1.0, logprobs=2, ignore_eos=True
    )
    expected = one(make_engine(), run_all, params)
    crowded = make_engine(num_blocks=9)
    for i in range(4):
        crowded.add(str(i), [i] * 5, SamplingParams(12, seed=i, ignore_eos=True))
    crowded.add("it", PROMPT, params)
    got = run_all(crowded)["it"]
    assert crowded.stats().preemptions > 0
    assert tokens_of(got) == tokens_of(expected)


def test_a_bias_forces_and_forbids(make_engine: MakeEngine, run_all: RunAll) -> None:
    forced = one(
        make_engine(),
        run_all,
        SamplingParams(5, temperature=1, seed=0, logit_bias={65: 100.0}, ignore_eos=True),
    )
    assert text_of(forced) == "AAAAA"
    plain = tokens_of(one(make_engine(), run_all, SamplingParams(1, temperature=0)))
    without = one(
        make_engine(), run_all, SamplingParams(8, temperature=0, logit_bias={plain[0]: -100.0})
    )
    assert plain[0] not in tokens_of(without)


def test_min_p_keeps_only_what_is_nearly_as_likely(
    make_engine: MakeEngine, run_all: RunAll, logits_after: Logits
) -> None:
    probabilities = logits_after(PROMPT).softmax(0)
    allowed = set((probabilities >= 0.5 * probabilities.max()).nonzero()[:, 0].tolist())
    assert 1 < len(allowed) < 200
    seen = set()
    for seed in range(60):
        params = SamplingParams(1, min_p=0.5, seed=seed)
        seen |= set(tokens_of(one(make_engine(), run_all, params)))
    assert seen <= allowed
    assert len(seen) > 1


def test_log_probabilities_are_the_models_own(
    make_engine: MakeEngine, run_all: RunAll, logits_after: Logits
) -> None:
    params = SamplingParams(
        6, temperature=1.4, seed=1, logprobs=5, presence_penalty=2.0, logit_bias={3: 5.0},
        ignore_eos=True,
    )  # fmt: skip
    ids = list(PROMPT)
    for output in one(make_engine(), run_all, params):
        expected = logits_after(ids).log_softmax(0)
        assert output.logprobs is not None
        assert output.token_id == output.logprobs.token_id
        assert output.logprobs.logprob == pytest.approx(float(expected[output.token_id]), abs=1e-9)
        best = expected.topk(5)
        assert [token for token, _ in output.logprobs.top] == best.indices.tolist()
        assert [p for _, p in output.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-9)
        ids.append(output.token_id)


def test_log_probabilities_come_only_where_asked_for_and_as_many(
    make_engine: MakeEngine, run_all: RunAll
) -> None:
    engine = make_engine()
    for name, count in (("none", None), ("own", 0), ("three", 3)):
        engine.add(name, PROMPT, SamplingParams(2, temperature=0, logprobs=count))
    outputs = run_all(engine)
    assert [o.logprobs for o in outputs["none"]] == [None, None]
    assert [len(o.logprobs.top) for o in outputs["own"] if o.logprobs] == [0, 0]
    assert [len(o.logprobs.top) for o in outputs["three"] if o.logprobs] == [3, 3]


def test_n_answers_are_what_each_draws_alone(make_engine: MakeEngine, run_all: RunAll) -> None:
    params = SamplingParams(10, temperature=1.3, seed=7, n=4, ignore_eos=True)
    roomy = make_engine(num_blocks=64)
    four = answers(one(roomy, run_all, params))
    assert {index: len(outputs) for index, outputs in four.items()} == dict.fromkeys(range(4), 10)
    assert all(outputs[-1].finish_reason == "length" for outputs in four.values())
    assert len({tuple(tokens_of(outputs)) for outputs in four.values()}) == 4
    assert roomy.stats().prompt_tokens == len(PROMPT)
    single = tokens_of(one(make_engine(), run_all, replace(params, n=1)))
    assert tokens_of(four[0]) == single  # the first of n is the only one of 1
    # Whatever else runs, and through preemptions, each of the four says the same again.
    crowded = make_engine(num_blocks=9, max_num_seqs=8)
    for i in range(3):
        crowded.add(str(i), [i] * 7, SamplingParams(15, ignore_eos=True))
    again = answers(one(crowded, run_all, params))
    assert crowded.stats().preemptions > 0
    assert {i: tokens_of(o) for i, o in again.items()} == {i: tokens_of(o) for i, o in four.items()}


def test_greedy_n_gives_equal_answers_and_each_ends_by_itself(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Callable[..., list[int]]
) -> None:
    got = answers(
        one(make_engine(), run_all, SamplingParams(6, temperature=0, n=3, ignore_eos=True))
    )
    assert [tokens_of(got[i]) for i in range(3)] == [reference_greedy(PROMPT, 6)] * 3


def test_aborting_a_request_of_n_ends_all_its_answers(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add("it", PROMPT, SamplingParams(50, n=5, ignore_eos=True))
    engine.step()
    engine.step()
    assert engine.stats().running == 5
    engine.abort("it")
    assert (engine.stats().running, engine.stats().blocks_used) == (0, 0)
    assert not engine.has_work()


def test_min_tokens_holds_back_every_end(make_engine: MakeEngine, run_all: RunAll) -> None:
    (eos,) = make_engine().loaded.tokenizer.eos_token_ids
    biased = {eos: 100.0}
    assert len(one(make_engine(), run_all, SamplingParams(9, logit_bias=biased))) == 1
    outputs = one(make_engine(), run_all, SamplingParams(9, logit_bias=biased, min_tokens=4))
    assert [o.finish_reason for o in outputs] == [None] * 4 + ["stop"]
    params = SamplingParams(
        9, logit_bias={66: 100.0}, min_tokens=2, stop_token_ids=(66,), ignore_eos=True
    )
    outputs = one(make_engine(), run_all, params)
    assert tokens_of(outputs)[2:] == [66]
    assert "B" not in text_of(outputs)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_a_schema_is_kept_whatever_the_model_would_rather_say(
    make_engine: MakeEngine, run_all: RunAll, temperature: float
) -> None:
    structure = Structure("json_schema", json.dumps(SCHEMA))
    params = SamplingParams(200, temperature=temperature, seed=3, structure=structure)
    engine = make_engine(num_blocks=300)
    engine.add("free", [1, 2], SamplingParams(30, seed=1, ignore_eos=True))
    outputs = one(engine, run_all, params)
    assert outputs[-1].finish_reason == "stop"
    said = json.loads(text_of(outputs))
    assert set(said) == {"name", "age", "tags"}
    assert isinstance(said["name"], str)
    assert 0 <= said["age"] <= 99
    assert set(said["tags"]) <= {"a", "b"}


def test_a_regular_expression_is_matched_by_each_of_n_answers(
    make_engine: MakeEngine, run_all: RunAll
) -> None:
    structure = Structure("regex", r"(yes|no), [0-9]{2,4}é?")
    params = SamplingParams(40, seed=5, n=4, structure=structure, ignore_eos=True)
    for outputs in answers(one(make_engine(), run_all, params)).values():
        assert re.fullmatch(r"(yes|no), [0-9]{2,4}é?", text_of(outputs))
        assert outputs[-1].finish_reason == "stop"


def test_any_json_object(make_engine: MakeEngine, run_all: RunAll) -> None:
    params = SamplingParams(
        300, temperature=0.7, seed=2, structure=Structure("json_object"), logit_bias={125: 12.0}
    )
    outputs = one(make_engine(num_blocks=200), run_all, params)
    assert isinstance(json.loads(text_of(outputs)), dict)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Structure("regex", "(["), "regex"),
        (Structure("regex", r"[^\s\S]"), "nothing matches"),
        (Structure("json_schema", "{"), "cannot be read"),
        (Structure("json_schema", "[]"), "is an object"),
        (Structure("json_schema", '{"type": "nope"}'), "nope"),
        (Structure("json_schema", '{"$ref": "http://example.com/x"}'), "not supported"),
        (Structure("json_schema", "[" * 100_000), "cannot be read"),
    ],
)
def test_a_structure_that_cannot_be_held_to_is_refused(
    make_engine: MakeEngine, structure: Structure, message: str
) -> None:
    engine = make_engine()
    with pytest.raises(ParameterError, match=message) as error:
        engine.add("it", PROMPT, SamplingParams(5, structure=structure))
    assert error.value.parameter == "structure"
    assert not engine.has_work()


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        (SamplingParams(5, logit_bias={259: 1.0}), "logit_bias"),
        (SamplingParams(5, logit_bias={-1: 1.0}), "logit_bias"),
        (SamplingParams(5, stop_token_ids=(400,)), "stop_token_ids"),
        (SamplingParams(5, n=33), "n"),
    ],
)
def test_what_this_model_or_engine_cannot_do_is_refused_by_name(
    make_engine: MakeEngine, params: SamplingParams, parameter: str
) -> None:
    with pytest.raises(ParameterError) as error:
        make_engine().add("it", PROMPT, params)
    assert error.value.parameter == parameter


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_p", 1.1), ("min_p", math.nan), ("frequency_penalty", 2.1),
        ("presence_penalty", math.nan), ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf), ("logit_bias", {1: 101.0}), ("logit_bias", {1: math.nan}),
        ("n", 0), ("logprobs", 21), ("logprobs", -1), ("min_tokens", 17), ("min_tokens", -1),
        ("priority", 101),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=field) as error:
        SamplingParams(**{field: value})
    assert error.value.parameter == field


def test_a_structure_and_min_tokens_exclude_each_other() -> None:
    with pytest.raises(ParameterError, match="min_tokens"):
        SamplingParams(9, min_tokens=3, structure=Structure("json_object"))
    with pytest.raises(ParameterError, match="needs a spec"):
        Structure("regex")


def test_a_structure_that_breaks_ends_its_request_with_an_error_and_no_other(
    make_engine: MakeEngine, run_all: RunAll, reference_greedy: Callable[..., list[int]]
) -> None:
    engine = make_engine()
    engine.add("it", PROMPT, SamplingParams(20, structure=Structure("regex", "[a-z]{15}")))
    engine.add("beside", PROMPT, SamplingParams(6, temperature=0, ignore_eos=True))
    engine.step()
    (broken,) = engine._live["it"]
    assert broken.matcher is not None
    broken.matcher.advance(0)  # what no step would let through: the parser gives up
    outputs = run_all(engine)
    assert outputs["it"][-1].finish_reason == "error"
    assert "structure" in outputs["it"][-1].error
    assert len(outputs["beside"]) == 5
    assert tokens_of(outputs["beside"]) == reference_greedy(PROMPT, 6)[1:]


@pytest.mark.parametrize("vocab_size", [300, 257])  # more ids than the tokenizer's 259, and fewer
def test_ids_that_only_the_model_or_only_the_tokenizer_has_are_never_sampled(
    run_all: RunAll, vocab_size: int
) -> None:
    config = replace(DUMMY_CONFIG, vocab_size=vocab_size)
    model = Llama(config, random_weights(config), torch.float64, torch.device("cpu"))
    engine = Engine(LoadedModel(model, ByteTokenizer(), config, "wide"), EngineConfig())
    known = min(vocab_size, ByteTokenizer.vocab_size)
    ends = SamplingParams(60, temperature=9.0, seed=1, n=4, min_tokens=60, logprobs=3)
    engine.add("free", [1, 2], ends)
    engine.add("held", [1, 2], SamplingParams(9, structure=Structure("regex", "[a-f]{6}")))
    outputs = run_all(engine)
    assert all(token < known for token in tokens_of(outputs["free"]))
    assert len(outputs["free"]) == 240
    assert re.fullmatch("[a-f]{6}", text_of(outputs["held"]))
    for wrong in ({"logit_bias": {known: 1.0}}, {"stop_token_ids": (known,)}):
        with pytest.raises(ParameterError, match=f"0 to {known - 1}"):
            engine.add("wrong", [1], SamplingParams(5, **wrong))  # type: ignore[arg-type]
