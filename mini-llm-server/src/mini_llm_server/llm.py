"""Offline generation: prompts in, completions out, batched by the same engine that serves.

python -c "from mini_llm_server import LLM; print(LLM().generate(['Once upon a time'])[0].text)"
"""

from __future__ import annotations

from collections import deque
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
        if not isinstance(params, Sequence):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts came with {len(params)} params: one for each")
        ids = [self.engine.loaded.tokenizer.encode(prompt) for prompt in prompts]
        for prompt_ids, param in zip(ids, params, strict=True):
            self.engine.check(prompt_ids, param)
        try:
            return self._run(prompts, ids, params)
        finally:  # an interrupt leaves nothing behind for the next call
            for i in range(len(prompts)):
                self.engine.abort(str(i))

    def _run(
        self, prompts: Sequence[str], ids: list[list[int]], params: Sequence[SamplingParams]
    ) -> list[Completion]:
        texts = [""] * len(prompts)
        tokens: list[list[int]] = [[] for _ in prompts]
        done: dict[int, Completion] = {}
        to_add = deque(range(len(prompts)))
        max_waiting = self.engine.config.max_waiting
        while len(done) < len(prompts):
            while to_add and self.engine.stats().waiting < max_waiting:
                i = to_add.popleft()
                self.engine.add(str(i), ids[i], params[i])
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
