"""Offline generation: prompts in, completions out, batched by the same engine that serves.

python -c "from mini_llm_server import LLM; print(LLM().generate(['Once upon a time'])[0].text)"
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_llm_server.engine.engine import Engine, EngineConfig
from mini_llm_server.engine.request import FinishReason, SamplingParams, TokenLogprobs
from mini_llm_server.model.tokenizer import Message


@dataclass
class Answer:
    """One answer to a prompt.

    Attributes:
        finish_reason: "error" where it broke; `error` then says why.
        logprobs: one for each token, where `SamplingParams.logprobs` asked for them.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True)
class Completion:
    """A prompt and its answers, as many as `SamplingParams.n`; the properties are the first's."""

    prompt: str | list[int]
    prompt_token_ids: list[int]
    answers: list[Answer]

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.answers[0].text

    @property
    def token_ids(self) -> list[int]:
        """The first answer's tokens."""
        return self.answers[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first answer ended."""
        return self.answers[0].finish_reason


class LLM:
    """A loaded model that completes lists of prompts.

    Args:
        model: what `load_model` takes: "smollm2", "dummy", a folder, a .gguf file, "ORG/NAME".
        options: fields of `EngineConfig`; max_waiting does not limit a list of prompts.
    """

    def __init__(self, model: str = "smollm2", **options: Any) -> None:
        self.engine = Engine.load(model, EngineConfig(**options))

    def generate(
        self,
        prompts: Sequence[str | list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete each prompt; all of them run together.

        Args:
            prompts: texts or token ids; the chat template is not applied.
            params: for all of them, or one for each.

        Returns:
            The completions in the order of the prompts.

        Raises:
            RequestTooLarge, ValueError: see `Engine.check`; nothing is generated then.
        """
        encode = self.engine.loaded.tokenizer.encode
        return self._run([
            Completion(prompt, encode(prompt) if isinstance(prompt, str) else list(prompt), [])
            for prompt in prompts
        ], params)  # fmt: skip

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Answer each conversation, a list of {"role": ..., "content": ...}; see `generate`.

        Raises:
            ValueError: also where the model takes no conversations, or not this one.
        """
        template = self.engine.loaded.tokenizer.apply_chat_template
        ids = [template(messages) for messages in conversations]
        return self._run([Completion(each, each, []) for each in ids], params)

    def _run(
        self,
        completions: list[Completion],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[Completion]:
        if not isinstance(params, Sequence):
            params = [params or SamplingParams()] * len(completions)
        if len(params) != len(completions):
            raise ValueError(
                f"{len(completions)} prompts came with {len(params)} params: one for each"
            )
        for completion, param in zip(completions, params, strict=True):
            self.engine.check(completion.prompt_token_ids, param)
            completion.answers[:] = [Answer() for _ in range(param.n)]
        try:
            self._step_until_done(completions, params)
        finally:  # an interrupt leaves nothing behind for the next call
            for i in range(len(completions)):
                self.engine.abort(str(i))
        return completions

    def _step_until_done(
        self, completions: Sequence[Completion], params: Sequence[SamplingParams]
    ) -> None:
        to_add = deque(range(len(completions)))
        max_waiting = self.engine.config.max_waiting
        unfinished = sum(param.n for param in params)
        while unfinished:
            while to_add and self.engine.stats().waiting < max_waiting:
                i = to_add.popleft()
                self.engine.add(str(i), completions[i].prompt_token_ids, params[i])
            for output in self.engine.step():
                answer = completions[int(output.request_id)].answers[output.index]
                answer.text += output.text
                if output.token_id is not None:
                    answer.token_ids.append(output.token_id)
                if output.logprobs is not None:
                    answer.logprobs.append(output.logprobs)
                answer.finish_reason, answer.error = output.finish_reason, output.error
                unfinished -= output.finish_reason is not None
