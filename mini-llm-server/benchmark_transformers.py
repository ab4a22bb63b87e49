"""transformers' `generate` as a peer: same weights, prompts, lengths and threads, no HTTP."""

import time
from collections.abc import Sequence

import torch
from benchmark_rows import error_of
from mini_llm_server.bench.client import BenchmarkError, Job
from mini_llm_server.model.gguf import GGUFFile
from mini_llm_server.model.loader import default_dtype, find_smollm2
from mini_llm_server.model.tokenizer import Tokenizer
from mini_llm_server.model.weights import GGUFWeights, read_config

import infra_bench


class Generate:
    """transformers' Llama with SmolLM2's weights as our reader has them.

    Raises:
        BenchmarkError: transformers is not installed.
    """

    def __init__(self, device: str, tokenizer: Tokenizer) -> None:
        try:
            from transformers import LlamaConfig, LlamaForCausalLM
        except ModuleNotFoundError:
            raise BenchmarkError(
                "transformers, a peer of the full run, is not installed: pip install transformers"
            ) from None
        file = GGUFFile(find_smollm2())
        config = read_config(file)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                max_position_embeddings=config.max_position,
                rms_norm_eps=config.rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                tie_word_embeddings=config.tie_word_embeddings,
                eos_token_id=None,  # goes on, as ours does with ignore_eos
                pad_token_id=0,
            )
        )
        model.load_state_dict(dict(GGUFWeights(file, config)), strict=False)
        self._model = model.to(device, default_dtype(torch.device(device))).eval()
        self._device, self._tokenizer = device, tokenizer

    def __call__(
        self, jobs: Sequence[Job], rounds: int, reference: Sequence[str], tolerance: float
    ) -> list[infra_bench.Row]:
        """Return the rate for the jobs, all of one length, as one batch."""
        ids = torch.tensor([job.prompt for job in jobs], device=self._device)
        (count,) = {job.max_tokens for job in jobs}
        self._generate(ids, 2)
        samples, error = [], 0.0
        for _ in range(rounds):
            begin = time.perf_counter()
            answers = self._generate(ids, count)
            samples.append(len(jobs) * count / (time.perf_counter() - begin))
            texts = [self._tokenizer.decode(answer) for answer in answers]
            error = max(error, error_of(texts, reference))
        name = "transformers generate"
        print(f"{name}, batch of {len(jobs)}: {samples[-1]:.1f} tok/s", flush=True)
        wrong = not error <= tolerance
        why = f"its answers differ from FIFO's by {error:.2g}" if wrong else ""
        return [
            infra_bench.Row(
                name, "output tokens", "tok/s", samples, better="higher", error=error, ours=False,
                status="refused" if wrong else "ok", reason=why,
            )
        ]  # fmt: skip

    @torch.inference_mode()
    def _generate(self, ids: torch.Tensor, count: int) -> list[list[int]]:
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
        )
        answers: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return answers
