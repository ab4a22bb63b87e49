"""POST /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mini_llm_server.api.answers import Answers
from mini_llm_server.api.disconnect import until_disconnect
from mini_llm_server.api.errors import APIError
from mini_llm_server.api.formats import ChatFormat, CompletionFormat, Format
from mini_llm_server.api.logs import note
from mini_llm_server.api.openai import ChatRequest, CompletionRequest, GenerationRequest
from mini_llm_server.api.service import service_of
from mini_llm_server.api.streaming import EventStream
from mini_llm_server.engine.request import SamplingParams

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several prompts."""
    service = service_of(request)
    service.check_model(body.model)
    if len(body.prompt) > service.max_prompts:
        raise APIError(
            400,
            f"the request holds {len(body.prompt)} prompts: this server's queue has "
            f"{service.max_prompts} places, so send fewer at once",
            param="prompt",
        )
    prompts = await service.encode(body.prompt)
    form = CompletionFormat(body.model)
    return await _respond(request, body, form, prompts, body.sampling(body.max_tokens), "prompt")


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    service.check_model(body.model)
    messages = [message.as_template_sees_it() for message in body.messages]
    prompt = await service.encode_chat(messages)
    params = body.sampling(body.limit or service.room_after(len(prompt)))
    return await _respond(request, body, ChatFormat(body.model), [prompt], params, "messages")


async def _respond(
    request: Request,
    body: GenerationRequest,
    form: Format,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    param: str,
) -> Response:
    """Let the engine generate, and answer in one piece or as a stream."""
    note(request.scope, id=form.id, user=body.user, stream=body.stream)
    thread = service_of(request).engine_thread
    answers = await Answers.submit(thread, form.id, prompts, params, param)
    if body.stream:
        return EventStream(answers, form, body.includes_usage)
    try:
        parts = await until_disconnect(request.receive, answers.collect())
    finally:
        await answers.aclose()
        note(request.scope, **answers.summary())
    choices = [
        form.choice(index, part.text, part.finish_reason) for index, part in enumerate(parts)
    ]
    return JSONResponse(form.answer(choices, answers.usage()))
