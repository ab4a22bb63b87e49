"""The answers to one HTTP request, as they grow: n for each of its prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from mini_llm_server.api.errors import APIError, from_engine, server_error
from mini_llm_server.api.formats import Piece
from mini_llm_server.api.metrics import AnswerTimer, Metrics
from mini_llm_server.engine.engine_thread import EngineThread, OutputStream
from mini_llm_server.engine.request import (
    EngineDead,
    Output,
    QueueFull,
    SamplingParams,
)


class Answers:
    """All answers of a request; closing it aborts what is unfinished and frees its blocks.

    Answer j to prompt i is choice i * n + j.

    Attributes:
        parts: what is known of each so far.
    """

    def __init__(self, num_prompts: int, n: int, metrics: Metrics, arrival: float) -> None:
        self._n = n
        self._streams: list[OutputStream] = []
        self._prompt_tokens = [0] * num_prompts
        self._cached_tokens = [0] * num_prompts
        self.parts = [Piece(index) for index in range(num_prompts * n)]
        self._echoes: dict[int, str] = {}  # what answers still have to begin with
        self._completion_tokens = [0] * len(self.parts)
        self._timers: list[AnswerTimer] = [metrics.timer(arrival) for _ in self.parts]

    @classmethod
    async def submit(
        cls,
        engine_thread: EngineThread,
        request_id: str,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        param: str,
        metrics: Metrics,
        arrival: float,
    ) -> Answers:
        """Hand the prompts to the engine.

        Args:
            request_id: of the HTTP request; the engine's ids are made from it.
            param: the field that holds the prompts, for errors.
            arrival: when the request came, of time.perf_counter.

        Raises:
            APIError: the engine refuses one of the prompts; then none of them runs.
        """
        answers = cls(len(prompts), params.n, metrics, arrival)
        try:
            for i, prompt in enumerate(prompts):
                stream = engine_thread.generate(prompt, params, f"{request_id}-{i}")
                answers._streams.append(stream)
                answers._prompt_tokens[i] = len(prompt)
        except (ValueError, QueueFull, EngineDead) as error:
            await answers.aclose()
            raise from_engine(error, param) from error
        return answers

    def echo(self, prompts: Sequence[str]) -> None:
        """Let each answer begin with its prompt's text; call before reading any piece."""
        self._echoes = {
            i * self._n + j: text for i, text in enumerate(prompts) for j in range(self._n)
        }

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of all answers as they come.

        Raises:
            APIError: the engine could not finish an answer.
        """
        outputs: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()

        async def forward(i: int, stream: OutputStream) -> None:
            async for output in stream:
                outputs.put_nowait((i, output))

        forwarding = [asyncio.ensure_future(forward(*each)) for each in enumerate(self._streams)]
        try:
            unfinished = len(self.parts)
            while unfinished:
                piece = self._note(*await outputs.get())
                unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            for task in forwarding:
                task.cancel()

    async def collect(self) -> list[Piece]:
        """Return the answers when all of them are complete."""
        async for _ in self.pieces():
            pass
        return self.parts

    def usage(self) -> dict[str, Any]:
        """Return OpenAI's token counts, over all answers; a prompt counts once."""
        prompt, completion = sum(self._prompt_tokens), sum(self._completion_tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached_tokens)},
        }

    def summary(self) -> dict[str, object]:
        """Return what the log says of it. A reason of None: the client left, or an error."""
        usage = self.usage()
        return {
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "cached_tokens": sum(self._cached_tokens),
            "finish_reasons": [part.finish_reason for part in self.parts],
        }

    async def aclose(self) -> None:
        """Abort what is unfinished; again is harmless."""
        for stream in self._streams:
            await stream.aclose()
        for part, timer in zip(self.parts, self._timers, strict=True):
            if part.finish_reason is None and self._streams:
                timer.end(None)
        self._streams = []

    def _note(self, i: int, output: Output) -> Piece:
        """Add an output of prompt i to its answer, and return it as a piece."""
        if output.finish_reason == "error":
            raise server_error(output.error)
        if output.finish_reason == "abort":
            raise _stopped()
        index = i * self._n + output.index
        part, timer = self.parts[index], self._timers[index]
        tokens = [output.logprobs] if output.logprobs else []
        text = self._echoes.pop(index, "") + output.text
        piece = Piece(index, text, output.finish_reason, len(part.text), tokens)
        part.text += text
        part.finish_reason = output.finish_reason
        part.logprobs += tokens
        self._completion_tokens[index] = output.completion_tokens
        self._cached_tokens[i] = output.cached_tokens
        if output.token_id is not None:
            timer.token()
        if output.finish_reason is not None:
            timer.end(output.finish_reason)
        return piece


def _stopped() -> APIError:
    return server_error(
        "the server is shutting down: send the request to another, or later",
        status=503,
        code="shutting_down",
    )
