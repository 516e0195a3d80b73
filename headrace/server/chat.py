"""Handlers of chat completions."""

from __future__ import annotations

import dataclasses

from starlette.types import ASGIApp

from headrace.errors import HeadraceError
from headrace.server.chat_answer import ChatAnswer
from headrace.server.chat_prompt import ChatPrompt, chat_prompt
from headrace.server.generation import Generation, Job
from headrace.server.prediction import predicted_ids
from headrace.server.protocol.chat import ChatRequest
from headrace.server.protocol.tokens import Rendered, RenderedList
from headrace.server.rendering import encode_json, json_bytes, json_response
from headrace.server.requests import Call
from headrace.server.sampling import Wanted, check_stream_options, most_drafted, output_room, sampling_params, stop_strings
from headrace.server.service import Service
from headrace.server.sse import EventStream


async def complete(service: Service, call: Call[ChatRequest]) -> ASGIApp:
    """``POST /chat/completions``."""
    body = call.body
    _check(body)
    standing = service.tenants.standing(call.tenant, body)
    prepared = await chat_prompt(service.language, body)
    job = dataclasses.replace(chat_job(service, body, prepared), prediction=await predicted_ids(service.language, body.prediction))
    generation = Generation(service, [job], standing, call.claim)
    answer = ChatAnswer(service, body, generation, prepared.dialect)
    seed = str(job.params.seed)
    if body.stream:
        stream = EventStream(generation, answer.events, answer.tail, service.settings)
        stream.header("x-headrace-seed", seed)
        return stream
    async with generation as turns:
        async for pieces in turns:
            answer.add(pieces)
    data = await service.language.aside(lambda: encode_json(answer.whole()), answer.weight)
    return json_bytes(data, {"x-headrace-seed": seed})


async def render(service: Service, call: Call[ChatRequest]) -> ASGIApp:
    """``POST /chat/completions/render``: the prompt as the model would see it."""
    _check(call.body)
    prompt = (await chat_prompt(service.language, call.body)).prompt
    rendered = Rendered(prompt.text or "", prompt.ids, len(prompt.ids))
    return json_response(RenderedList(data=[rendered], model=service.model_name))


def _check(body: ChatRequest) -> None:
    check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise HeadraceError("invalid_value", "'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    if body.prompt_logprobs is not None and body.stream:
        raise HeadraceError("invalid_value", "'prompt_logprobs' can't be streamed.", param="prompt_logprobs")
    if body.tool_choice not in (None, "none") and not body.tools:
        raise HeadraceError("invalid_value", "'tool_choice' needs 'tools'.", param="tool_choice")


def chat_job(service: Service, body: ChatRequest, prepared: ChatPrompt) -> Job:
    """What the engine is asked for. Raises what lengths and sampling refuse."""
    ids = prepared.prompt.ids
    limits = [limit for limit in (body.max_completion_tokens, body.max_tokens) if limit is not None]
    wanted = Wanted(
        max_tokens=output_room(len(ids), min(limits, default=None), service.language.context_length, "messages"),
        choices=body.n or 1,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        grammar=prepared.constraint.grammar,
    )
    return Job(
        prompt=ids,
        params=sampling_params(body, wanted, service.language.tokenizer.vocab_size),
        stop=stop_strings(body),
        deadline=body.deadline_ms / 1000 if body.deadline_ms is not None else None,
        grammar_param=prepared.constraint.param,
        speculation=most_drafted(body),
        keep_special=prepared.dialect.keep_special if prepared.dialect is not None else (),
    )
