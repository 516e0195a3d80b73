"""Handler of chat completions: messages to a prompt, formats and tools to a grammar, pieces to an answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from starlette.types import ASGIApp

from headrace.engine.sampling_params import GrammarSpec
from headrace.errors import HeadraceError
from headrace.server.chat_answer import ChatAnswer
from headrace.server.generation import Generation, Job
from headrace.server.language import Prompt
from headrace.server.protocol.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat
from headrace.server.protocol.tokens import Rendered, RenderedList
from headrace.server.rendering import json_response
from headrace.server.requests import Call
from headrace.server.sampling import (
    Constraint,
    Wanted,
    check_stream_options,
    extension_grammar,
    output_room,
    sampling_params,
    stop_strings,
)
from headrace.server.service import Service
from headrace.server.sse import EventStream
from headrace.text.chat_template import Conversation


async def complete(service: Service, call: Call[ChatRequest]) -> ASGIApp:
    """``POST /chat/completions``."""
    body = call.body
    service.check_model(body.model)
    _check(body)
    prompt = await service.language.render(conversation(body))
    job = _job(service, body, prompt)
    generation = Generation(service, [job])
    answer = ChatAnswer(service, body, generation)
    seed = str(job.params.seed)
    if body.stream:
        stream = EventStream(generation, answer.events, answer.tail, service.settings)
        stream.header("x-headrace-seed", seed)
        return stream
    async with generation as turns:
        async for pieces in turns:
            answer.add(pieces)
    return json_response(answer.whole(), headers={"x-headrace-seed": seed})


async def render(service: Service, call: Call[ChatRequest]) -> ASGIApp:
    """``POST /chat/completions/render``: the prompt as the model would see it."""
    service.check_model(call.body.model)
    _check(call.body)
    prompt = await service.language.render(conversation(call.body))
    rendered = Rendered(prompt.text or "", prompt.ids, len(prompt.ids))
    return json_response(RenderedList(data=[rendered], model=service.model_name))


def conversation(body: ChatRequest) -> Conversation:
    """What the template is given: plain values without the fields that were left out."""
    messages = [_plain(message) for message in body.messages]
    return Conversation(messages)


def _plain(message: Any) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(message)
    kept = {name: value for name, value in built.items() if value is not None and name not in ("refusal", "annotations")}
    if isinstance(kept.get("content"), list):
        kept["content"] = "".join(part["text"] for part in kept["content"])
    return kept


def _check(body: ChatRequest) -> None:
    check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise HeadraceError("invalid_value", "'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    if body.prompt_logprobs is not None and body.stream:
        raise HeadraceError("invalid_value", "'prompt_logprobs' can't be streamed.", param="prompt_logprobs")


def _job(service: Service, body: ChatRequest, prompt: Prompt) -> Job:
    limits = [limit for limit in (body.max_completion_tokens, body.max_tokens) if limit is not None]
    room = output_room(len(prompt.ids), min(limits, default=None), service.language.context_length, "messages")
    constraint = _constraint(body)
    wanted = Wanted(
        max_tokens=room,
        choices=body.n or 1,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        grammar=constraint.grammar,
    )
    return Job(
        prompt=prompt.ids,
        params=sampling_params(body, wanted, service.language.tokenizer.vocab_size),
        stop=stop_strings(body),
        deadline=body.deadline_ms / 1000 if body.deadline_ms is not None else None,
        grammar_param=constraint.param,
    )


def _constraint(body: ChatRequest) -> Constraint:
    """The one constraint on the output; a format and an extension can't both be set."""
    extension = extension_grammar(body)
    wanted = body.response_format
    if isinstance(wanted, JsonObjectFormat | JsonSchemaFormat) and extension.grammar is not None:
        problem = "'response_format' can't be combined with 'regex', 'choice' or 'grammar'."
        raise HeadraceError("invalid_value", problem, param="response_format")
    if isinstance(wanted, JsonObjectFormat):
        return Constraint(GrammarSpec("json_object", ""), "response_format")
    if isinstance(wanted, JsonSchemaFormat):
        return Constraint(GrammarSpec("json_schema", json.dumps(wanted.json_schema.schema)), "response_format")
    return extension
