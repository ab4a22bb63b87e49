"""The engine on a GPU gives what it gives on the CPU, which the other tests check."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from mini_llm_server.engine.engine import Engine, EngineConfig
from mini_llm_server.engine.request import Output, SamplingParams, Structure
from mini_llm_server.llm import LLM
from mini_llm_server.model.attention import Span, TorchPagedAttention
from mini_llm_server.model.loader import load_model

pytestmark = pytest.mark.gpu
RunAll = Callable[..., dict[str, list[Output]]]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(12, temperature=0, ignore_eos=True),
        SamplingParams(12, temperature=1.2, seed=5, ignore_eos=True),
        SamplingParams(12, temperature=1.2, top_p=0.8, top_k=40, seed=5, ignore_eos=True),
        SamplingParams(
            12,
            temperature=1.2,
            min_p=0.02,
            seed=5,
            n=3,
            frequency_penalty=0.5,
            repetition_penalty=1.1,
            logit_bias={65: 2.0},
            logprobs=3,
            ignore_eos=True,
        ),
        SamplingParams(30, temperature=1.0, seed=5, structure=Structure("regex", "[a-f]{3,20}")),
    ],
)
@pytest.mark.parametrize("num_blocks", [400, 15])  # 15: preempts
def test_answers_equal_the_cpus(run_all: RunAll, params: SamplingParams, num_blocks: int) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(256) for _ in range(rng.randint(1, 25))] for _ in range(9)]
    answers = []
    for device in ("cpu", "cuda"):
        engine = Engine(
            load_model("dummy", torch.float64, device),
            EngineConfig(num_blocks=num_blocks, block_size=4, max_num_batched_tokens=40),
        )
        for i, prompt in enumerate(prompts):
            engine.add(str(i), prompt, params)
        outputs = run_all(engine)
        answers.append(
            {name: [(o.index, o.token_id) for o in out] for name, out in outputs.items()}
        )
        assert (engine.stats().preemptions > 0) == (num_blocks == 15)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_logits_of_a_ragged_batch_are_near_float64(dtype: torch.dtype, tolerance: float) -> None:
    lengths, generator = [1, 40, 17, 300], torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 256, (n,), generator=generator) for n in lengths]
    results = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
        model = load_model("dummy", kind, device).model
        attention = TorchPagedAttention(model.config, 100, 16, kind, model.device)
        attention.kv.fill_(torch.nan)
        tables, free = [], list(range(100))
        for n in lengths:
            tables.append([free.pop() for _ in range(-(-(n + 1) // 16))])
        flat = torch.cat(ids)
        positions = torch.cat([torch.arange(n) for n in lengths])
        prefill = attention.plan([Span(0, n, t) for n, t in zip(lengths, tables, strict=True)])
        rows = torch.arange(len(flat)).to(device)
        first = model.forward(flat.to(device), positions.to(device), rows, prefill)
        decode = attention.plan([Span(n, 1, t) for n, t in zip(lengths, tables, strict=True)])
        positions = torch.tensor(lengths).to(device)
        second = model.forward(
            torch.arange(4).to(device), positions, torch.arange(4).to(device), decode
        )
        results.append(torch.cat([first, second]).double().cpu())
    expected, got = results
    error = ((got - expected).norm() / expected.norm()).item()
    assert error < tolerance  # also false for NaN


def test_a_length_that_no_step_had_before_costs_nothing() -> None:
    """cuDNN's attention would make a plan for each, which takes many times as long as the step."""
    engine = Engine(load_model("dummy", device="cuda"), EngineConfig(num_blocks=100))

    def step_s(prompt: int) -> float:
        engine.add("request", [65] * prompt, SamplingParams(40, temperature=0, ignore_eos=True))
        seconds = []
        while engine.has_work():
            begin = time.perf_counter()
            engine.step()  # ends with the token on the CPU
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    step_s(10)  # loads the kernels
    new = step_s(100)
    assert new < 4 * step_s(100)


@pytest.mark.slow
def test_smollm2_on_the_gpu_by_default() -> None:
    llm = LLM("smollm2")
    assert llm.engine.loaded.model.device.type == "cuda"
    assert llm.engine.loaded.model.dtype == torch.bfloat16
    params = SamplingParams(8, temperature=0)
    (answer,) = llm.generate(["The capital of France is"], params)
    assert "Paris" in answer.text
