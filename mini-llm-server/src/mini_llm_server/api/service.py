"""What every route needs: the engine's thread, the model's tokenizer, metrics and limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fastapi import Request

from mini_llm_server.api.errors import APIError, from_parameter
from mini_llm_server.api.fields import Prompt
from mini_llm_server.api.metrics import Metrics
from mini_llm_server.engine.engine import Engine
from mini_llm_server.engine.engine_thread import EngineThread
from mini_llm_server.engine.sampling_params import ParameterError, SamplingParams
from mini_llm_server.model.tokenizer import Message


class Service:
    """One engine and its model, as the routes see them.

    Only constants are read of the engine itself: it belongs to its thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.engine_thread = EngineThread(engine)
        self.metrics = Metrics(self.engine_thread.stats)
        self.model_name = engine.loaded.name
        self.created = int(time.time())
        self.max_prompts = engine.config.max_waiting
        model = engine.loaded.model
        self.description = {
            "model": self.model_name,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "scheduler": engine.config.scheduler,
        }
        cached = engine.stats().blocks_total * engine.config.block_size
        # The last token sampled is never fed back, so it needs no place in the cache.
        self.max_tokens = min(engine.max_model_len, cached + 1)
        self.tokenizer = engine.loaded.tokenizer

    def check_model(self, name: str) -> None:
        """Refuse a request for a model that is not served."""
        if name != self.model_name:
            raise APIError(
                404,
                f"no model is named {name!r}: this server has {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def room_after(self, num_prompt_tokens: int) -> int:
        """Return the longest answer that fits behind a prompt; 1 where none does."""
        return max(1, self.max_tokens - num_prompt_tokens)

    def text_of(self, prompt: Prompt) -> str:
        """Return a prompt as text."""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    async def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return each prompt's token ids; a prompt that is ids already is taken as it is.

        In a worker thread: a long text takes longer than all other streams should wait.
        """
        encode = self.tokenizer.encode
        return await asyncio.to_thread(
            lambda: [encode(each) if isinstance(each, str) else each for each in prompts]
        )

    async def prepare(self, params: SamplingParams) -> None:
        """Compile the structure of an answer, where one is asked for, in a worker thread.

        Raises:
            APIError: 400 where it cannot be compiled.
        """
        if params.structure is None:
            return
        try:
            await asyncio.to_thread(self._engine.prepare, params)
        except ParameterError as error:
            raise from_parameter(error) from error

    async def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation up to where the answer starts.

        Raises:
            APIError: 400 where the model's chat template refuses the conversation.
        """
        try:
            return await asyncio.to_thread(self.tokenizer.apply_chat_template, messages)
        except ValueError as error:
            raise APIError(400, str(error), param="messages") from error


def service_of(request: Request) -> Service:
    """Return the service of the app that this request came to."""
    service: Service = request.app.state.service
    return service
