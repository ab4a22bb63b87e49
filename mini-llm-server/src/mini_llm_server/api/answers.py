"""The answers to one HTTP request's prompts, as they grow: one engine request for each prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from mini_llm_server.api.errors import APIError, from_engine, server_error
from mini_llm_server.engine.engine_thread import EngineThread, OutputStream
from mini_llm_server.engine.request import (
    EngineDead,
    FinishReason,
    Output,
    QueueFull,
    SamplingParams,
)


@dataclass
class Answer:
    """What is known of one prompt's answer so far."""

    text: str = ""
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answers:
    """All prompts' answers; closing it aborts what is unfinished and frees its blocks."""

    def __init__(self) -> None:
        self.parts: list[Answer] = []
        self._streams: list[OutputStream] = []

    @classmethod
    async def submit(
        cls,
        engine_thread: EngineThread,
        request_id: str,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        param: str,
    ) -> Answers:
        """Hand the prompts to the engine.

        Args:
            request_id: of the HTTP request; the engine's ids are made from it.
            param: the field that holds the prompts, for errors.

        Raises:
            APIError: the engine refuses one of the prompts; then none of them runs.
        """
        answers = cls()
        try:
            for i, prompt in enumerate(prompts):
                stream = engine_thread.generate(prompt, params, f"{request_id}-{i}")
                answers._streams.append(stream)
                answers.parts.append(Answer(prompt_tokens=len(prompt)))
        except (ValueError, QueueFull, EngineDead) as error:
            await answers.aclose()
            raise from_engine(error, param) from error
        return answers

    async def outputs(self) -> AsyncIterator[tuple[int, Output]]:
        """Yield (index of the prompt, piece of its answer) as the pieces come.

        Raises:
            APIError: the engine could not finish an answer.
        """
        pieces: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()

        async def forward(index: int, stream: OutputStream) -> None:
            async for output in stream:
                pieces.put_nowait((index, output))

        forwarding = [asyncio.ensure_future(forward(*each)) for each in enumerate(self._streams)]
        try:
            unfinished = len(forwarding)
            while unfinished:
                index, output = await pieces.get()
                self._note(self.parts[index], output)
                unfinished -= output.finish_reason is not None
                yield index, output
        finally:
            for task in forwarding:
                task.cancel()

    async def collect(self) -> list[Answer]:
        """Return the answers when all of them are complete."""
        async for _ in self.outputs():
            pass
        return self.parts

    def usage(self) -> dict[str, int]:
        """Return OpenAI's token counts, over all prompts."""
        prompt = sum(part.prompt_tokens for part in self.parts)
        completion = sum(part.completion_tokens for part in self.parts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def summary(self) -> dict[str, object]:
        """Return what the log says of it. A reason of None: the client left, or an error."""
        reasons = [part.finish_reason for part in self.parts]
        return {**self.usage(), "finish_reasons": reasons}

    async def aclose(self) -> None:
        """Abort what is unfinished; again is harmless."""
        for stream in self._streams:
            await stream.aclose()

    @staticmethod
    def _note(part: Answer, output: Output) -> None:
        if output.finish_reason == "error":
            raise server_error(output.error)
        if output.finish_reason == "abort":
            raise _stopped()
        part.text += output.text
        part.finish_reason = output.finish_reason
        part.completion_tokens = output.completion_tokens


def _stopped() -> APIError:
    return server_error(
        "the server is shutting down: send the request to another, or later",
        status=503,
        code="shutting_down",
    )
