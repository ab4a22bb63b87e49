"""`LLM`: the library without HTTP."""

from __future__ import annotations

import pytest
from mini_llm_server import LLM, RequestTooLarge, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("dummy", num_blocks=64, max_waiting=3)


def test_each_prompt_gets_what_it_gets_alone_in_the_prompts_order(llm: LLM) -> None:
    prompts = [f"prompt number {i}" for i in range(12)]  # four times what the queue takes
    together = llm.generate(prompts, GREEDY)
    assert [completion.prompt for completion in together] == prompts
    for prompt, completion in zip(prompts, together, strict=True):
        assert completion.token_ids == llm.generate([prompt], GREEDY)[0].token_ids
        assert len(completion.token_ids) == 9
        assert completion.finish_reason == "length"


def test_token_ids_are_taken_as_they_are(llm: LLM) -> None:
    by_ids, by_text = llm.generate([list(b"same"), "same"], GREEDY)
    assert by_ids.answers == by_text.answers
    assert by_text.prompt_token_ids == list(b"same")


def test_n_answers_and_their_logprobs(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=5, logprobs=2, ignore_eos=True)
    (completion,) = llm.generate(["dice"], params)
    assert len({tuple(answer.token_ids) for answer in completion.answers}) == 3
    for answer in completion.answers:
        assert [each.token_id for each in answer.logprobs] == answer.token_ids
        assert all(len(each.top) == 2 for each in answer.logprobs)
    assert completion.text == completion.answers[0].text
    assert llm.generate(["dice"], params)[0].answers == completion.answers


def test_a_parameter_set_for_each(llm: LLM) -> None:
    short = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    lengths = [len(c.token_ids) for c in llm.generate(["a", "a"], [GREEDY, short])]
    assert lengths == [9, 2]
    with pytest.raises(ValueError, match="2 prompts came with 1 params"):
        llm.generate(["a", "a"], [GREEDY])


def test_a_conversation_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    ids = llm.engine.loaded.tokenizer.apply_chat_template(messages)
    assert llm.chat([messages], GREEDY)[0].answers == llm.generate([ids], GREEDY)[0].answers


def test_one_wrong_prompt_stops_all_before_anything_runs(llm: LLM) -> None:
    before = llm.engine.stats().steps
    with pytest.raises(RequestTooLarge):
        llm.generate(["fine", "x" * 3000], GREEDY)
    with pytest.raises(ValueError, match="empty"):
        llm.generate(["fine", ""], GREEDY)
    assert llm.engine.stats().steps == before
    assert llm.generate([], GREEDY) == []


def test_an_interrupt_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = llm.engine.step, iter(range(100))

    def interrupted() -> object:
        if next(steps) == 4:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c"], GREEDY)
    monkeypatch.undo()
    assert not llm.engine.has_work()
    assert llm.engine.stats().blocks_used == 0
    assert len(llm.generate(["a"], GREEDY)[0].token_ids) == 9
