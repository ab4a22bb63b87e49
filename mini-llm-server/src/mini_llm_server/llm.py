"""Offline generation: prompts in, completions out, batched by the same engine that serves.

python -c "from mini_llm_server import LLM; print(LLM().generate(['Once upon a time'])[0].text)"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mini_llm_server.engine.engine import Engine, EngineConfig
from mini_llm_server.engine.request import FinishReason, SamplingParams


@dataclass(frozen=True)
class Completion:
    """One prompt's answer."""

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    error: str = ""


class LLM:
    """A loaded model that completes lists of prompts.

    Args:
        model: a name that `load_model` knows.
        options: fields of `EngineConfig`; max_waiting does not limit a list of prompts.
    """

    def __init__(self, model: str = "smollm2", **options: Any) -> None:
        self.engine = Engine.load(model, EngineConfig(**options))

    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete each prompt; all of them run together.

        Args:
            prompts: texts; the chat template is not applied.
            params: for all of them, or one for each.

        Returns:
            The completions in the order of the prompts.

        Raises:
            RequestTooLarge, ValueError: see `Engine.check`; nothing is generated then.
        """
        each = (
            params if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        )
        if len(each) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts came with {len(each)} parameters: one for each"
            )
        tokenizer = self.engine.loaded.tokenizer
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        for prompt_ids, param in zip(ids, each, strict=True):
            self.engine.check(prompt_ids, param)

        texts = [""] * len(prompts)
        tokens: list[list[int]] = [[] for _ in prompts]
        done: dict[int, Completion] = {}
        queued = 0
        while len(done) < len(prompts):
            while (
                queued < len(prompts)
                and self.engine.stats().waiting < self.engine.config.max_waiting
            ):
                self.engine.add(str(queued), ids[queued], each[queued])
                queued += 1
            for output in self.engine.step():
                i = int(output.request_id)
                texts[i] += output.text
                if output.token_id is not None:
                    tokens[i].append(output.token_id)
                if output.finish_reason is not None:
                    done[i] = Completion(
                        prompts[i], texts[i], tuple(tokens[i]), output.finish_reason, output.error
                    )
        return [done[i] for i in range(len(prompts))]
