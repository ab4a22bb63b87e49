"""POST /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from mini_llm_server.api.answers import Answers
from mini_llm_server.api.disconnect import until_disconnect
from mini_llm_server.api.errors import APIError, from_parameter
from mini_llm_server.api.formats import ChatFormat, CompletionFormat, Format
from mini_llm_server.api.logs import arrival_of, note
from mini_llm_server.api.openai import ChatRequest, CompletionRequest, GenerationRequest
from mini_llm_server.api.routes.documented import GENERATION_RESPONSES
from mini_llm_server.api.service import service_of
from mini_llm_server.api.streaming import EventStream
from mini_llm_server.engine.sampling_params import ParameterError, SamplingParams

router = APIRouter()


@router.post("/v1/completions", response_model=None, responses=GENERATION_RESPONSES)
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
    form = CompletionFormat(body.model, service.tokenizer, body.num_logprobs is not None)
    answers = await _submit(request, body, form, prompts, body.max_tokens, "prompt")
    if body.echo:
        answers.echo([service.text_of(prompt) for prompt in body.prompt])
    return await _respond(request, body, form, answers)


@router.post("/v1/chat/completions", response_model=None, responses=GENERATION_RESPONSES)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    service.check_model(body.model)
    messages = [message.as_template_sees_it() for message in body.messages]
    prompt = await service.encode_chat(messages)
    form = ChatFormat(body.model, service.tokenizer, body.num_logprobs is not None)
    limit = body.limit or service.room_after(len(prompt))
    answers = await _submit(request, body, form, [prompt], limit, "messages")
    return await _respond(request, body, form, answers)


async def _submit(
    request: Request,
    body: GenerationRequest,
    form: Format,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    param: str,
) -> Answers:
    """Hand the prompts to the engine; `param` is the field that they came in."""
    note(request.scope, id=form.id, user=body.user, stream=body.stream)
    service = service_of(request)
    try:
        params: SamplingParams = body.sampling(max_tokens)
    except ParameterError as error:
        raise from_parameter(error) from error
    await service.prepare(params)
    return await Answers.submit(
        service.engine_thread,
        form.id,
        prompts,
        params,
        param=param,
        metrics=service.metrics,
        arrival=arrival_of(request.scope),
    )


async def _respond(
    request: Request, body: GenerationRequest, form: Format, answers: Answers
) -> Response:
    """Answer in one piece or as a stream."""
    if body.stream:
        return EventStream(answers, form, body.includes_usage)
    try:
        parts = await until_disconnect(request.receive, answers.collect())
    finally:
        await answers.aclose()
        note(request.scope, **answers.summary())
    return JSONResponse(form.answer(parts, answers.usage()))
