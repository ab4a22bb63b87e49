"""The engine on a GPU gives what it gives on the CPU, which the other tests check."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from mini_llm_server.engine.decode_graph import DecodeGraphs
from mini_llm_server.engine.engine import Engine, EngineConfig
from mini_llm_server.engine.request import Output, SamplingParams, Structure
from mini_llm_server.llm import LLM
from mini_llm_server.model.attention import (
    KernelPagedAttention,
    Span,
    TorchPagedAttention,
    make_attention,
)
from mini_llm_server.model.config import ModelConfig
from mini_llm_server.model.dummy import random_weights
from mini_llm_server.model.loader import LoadedModel, load_model
from mini_llm_server.model.tokenizer import ByteTokenizer
from mini_llm_server.model.transformer import Llama

pytestmark = pytest.mark.gpu
RunAll = Callable[..., dict[str, list[Output]]]
GREEDY = SamplingParams(12, temperature=0, ignore_eos=True)
WAYS = [("cpu", False), ("cuda", False), ("cuda", True)]  # device, CUDA graphs


def prompts_of(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(256) for _ in range(rng.randint(2, 25))] for _ in range(count)]


def engine_of(device: str, cuda_graphs: bool, **options: int) -> Engine:
    """Return the dummy model's engine in float64, where no choice hangs on rounding."""
    options = {"num_blocks": 400, "block_size": 4, "max_num_batched_tokens": 40, **options}
    config = EngineConfig(cuda_graphs=cuda_graphs, **options)
    return Engine(load_model("dummy", torch.float64, device), config)


def tokens_of(outputs: dict[str, list[Output]]) -> dict[str, list[tuple[int, int | None]]]:
    return {name: [(o.index, o.token_id) for o in out] for name, out in outputs.items()}


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
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
    answers = []
    for device, cuda_graphs in WAYS:
        engine = engine_of(device, cuda_graphs, num_blocks=num_blocks)
        for i, prompt in enumerate(prompts_of(9)):
            engine.add(str(i), prompt, params)
        answers.append(tokens_of(run_all(engine)))
        assert (engine.stats().preemptions > 0) == (num_blocks == 15)
    assert answers[0] == answers[1] == answers[2]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the batch sizes of the steps that were replays of a graph."""
    sizes: list[int] = []
    run = DecodeGraphs.run

    def counting(self: DecodeGraphs, token_ids: Sequence[int], spans: Sequence[Span]) -> object:
        sizes.append(len(spans))
        return run(self, token_ids, spans)

    monkeypatch.setattr(DecodeGraphs, "run", counting)
    return sizes


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 25, 33])
def test_batches_of_every_size_are_replayed_and_answer_as_on_the_cpu(
    run_all: RunAll, replays: list[int], count: int
) -> None:
    answers = []
    lengths = [4 + i % 5 for i in range(count)]  # so that the batch shrinks
    for device, cuda_graphs in (WAYS[0], WAYS[2]):
        engine = engine_of(device, cuda_graphs, max_num_seqs=33, max_num_batched_tokens=900)
        for i, prompt in enumerate(prompts_of(count)):
            engine.add(str(i), prompt, replace(GREEDY, max_tokens=lengths[i]))
        answers.append(tokens_of(run_all(engine)))
    assert answers[0] == answers[1]
    assert max(replays) == count
    assert len(replays) == max(lengths) - 1  # all steps but the first, which computes the prompts


def test_a_request_that_is_aborted_leaves_the_others_answers_alone(run_all: RunAll) -> None:
    answers = []
    for device, cuda_graphs in WAYS:
        engine = engine_of(device, cuda_graphs, max_num_batched_tokens=900)
        for i, prompt in enumerate(prompts_of(9)):
            engine.add(str(i), prompt, GREEDY)
        for _ in range(4):
            engine.step()
        for aborted in ("0", "4"):
            engine.abort(aborted)
        engine.add("late", [1, 2, 3], GREEDY)  # takes over their blocks
        answers.append(tokens_of(run_all(engine)))
    assert answers[0] == answers[1] == answers[2]


def test_a_model_whose_heads_the_kernel_does_not_take_runs_without_graphs(
    run_all: RunAll, replays: list[int]
) -> None:
    config = ModelConfig(ByteTokenizer.vocab_size, 96, 160, 2, 6, 2, 20, 512)
    answers = []
    for device in ("cpu", "cuda"):
        model = Llama(config, random_weights(config), torch.float64, torch.device(device))
        loaded = LoadedModel(model, ByteTokenizer(), config, "odd")
        engine = Engine(loaded, EngineConfig(num_blocks=100))
        engine.add("0", [1, 2, 3], GREEDY)
        answers.append(tokens_of(run_all(engine)))
    assert answers[0] == answers[1]
    assert not replays


@pytest.mark.parametrize("backend", [KernelPagedAttention, TorchPagedAttention])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 1e-2)],
)
@pytest.mark.parametrize("chunk", [500, 37])  # prompts at once, or in chunks behind others
def test_logits_of_ragged_batches_are_near_float64(
    backend: type[TorchPagedAttention], dtype: torch.dtype, tolerance: float, chunk: int
) -> None:
    lengths, generator = [1, 40, 17, 300, 38], torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 256, (n + 1,), generator=generator) for n in lengths]
    results = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
        model = load_model("dummy", kind, device).model
        make = TorchPagedAttention if device == "cpu" else backend
        attention = make(model.config, 100, 16, kind, model.device)
        attention.kv.fill_(torch.nan)
        free = list(range(100))
        tables = [[free.pop() for _ in range(-(-(n + 1) // 16))] for n in lengths]
        logits = []
        for start in (*range(0, max(lengths), chunk), None):  # None: the token after the prompt
            spans, tokens, positions = [], [], []
            for n, own, table in zip(lengths, ids, tables, strict=True):
                first = n if start is None else start
                count = 1 if start is None else min(chunk, n - first)
                if count > 0:
                    spans.append(Span(first, count, table))
                    tokens.append(own[first : first + count])
                    positions.append(torch.arange(first, first + count))
            flat, where = (torch.cat(each).to(device) for each in (tokens, positions))
            logits.append(model.forward(flat, where, None, attention.plan(spans)))
        results.append(torch.cat(logits).double().cpu())
    expected, got = results
    error = ((got - expected).norm() / expected.norm()).item()
    assert error < tolerance  # also false for NaN


def test_prompts_of_new_lengths_are_computed_without_cudnn() -> None:
    """cuDNN's attention makes a plan for each length, which takes far longer than the step."""
    engine = Engine(load_model("dummy", device="cuda"), EngineConfig(num_blocks=100))
    names: set[str] = set()
    for length in (100, 237):
        engine.add(str(length), [65] * length, SamplingParams(1, temperature=0, ignore_eos=True))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            engine.step()
            torch.cuda.synchronize()
        names |= {event.name.lower() for event in profile.events()}
    assert any("add_rms_norm" in name for name in names)  # the profiler has seen the step
    assert not [name for name in names if "cudnn" in name]


def test_the_backend_on_a_gpu_is_ours() -> None:
    model = load_model("dummy", device="cuda").model
    backend = make_attention(model.config, 4, 4, model.dtype, model.device)
    assert type(backend) is KernelPagedAttention


@pytest.mark.slow
def test_smollm2_on_the_gpu_by_default() -> None:
    llm = LLM("smollm2")
    assert llm.engine.loaded.model.device.type == "cuda"
    assert llm.engine.loaded.model.dtype == torch.bfloat16
    params = SamplingParams(8, temperature=0)
    (answer,) = llm.generate(["The capital of France is"], params)
    assert "Paris" in answer.text
