"""Handlers of the Responses API: its items become chat messages, its answers are made from the same pieces."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp

from headrace.errors import HeadraceError
from headrace.server.chat import chat_job
from headrace.server.chat_prompt import ChatPrompt, chat_prompt
from headrace.server.generation import Generation
from headrace.server.holding import holding
from headrace.server.hub import Hub
from headrace.server.identity import new_id
from headrace.server.paging import page
from headrace.server.protocol.chat import AssistantMessage, ChatRequest
from headrace.server.protocol.responses import (
    CountResponseRequest,
    FollowQuery,
    FunctionChoice,
    InputTokens,
    ItemList,
    ItemQuery,
    KeptItem,
    PlainFormat,
    ResponseDeleted,
    ResponseObject,
    ResponseRequest,
    TextConfig,
)
from headrace.server.rendering import error_body, json_response
from headrace.server.requests import Call
from headrace.server.response_input import chat_body, kept_items, kept_output, wants_logprobs
from headrace.server.response_turn import ResponseTurn
from headrace.server.response_writer import ResponseWriter, Voice
from headrace.server.service import Service
from headrace.server.sse import KEEPALIVE, EventStream, StreamDialect
from headrace.server.storage.response_store import KeptResponse

_PAGE = 20


async def create(hub: Hub, call: Call[ResponseRequest]) -> ASGIApp:
    """``POST /responses``."""
    body = call.body
    _check(hub, body)
    if body.background:
        hub.desk().responses.check_room(call.tenant)
    past, chat, own = _wanted(hub, call)
    async with AsyncExitStack() as held:
        service = await held.enter_async_context(hub.use(body.model, body.keep_alive, body.adapters or ()))
        prepared = await _prompt(service, chat)
        job = chat_job(service, chat, prepared)
        generation = Generation(service, [job], service.tenants.standing(call.tenant, chat), call.claim)
        kept = KeptResponse(_object(body, service.model_name, generation, stored=_stored(hub, body)), call.tenant, past, own)
        voice = Voice(service.language, prepared.dialect, (body.top_logprobs or 0) if wants_logprobs(body) else None)
        writer = ResponseWriter(kept.response, voice, generation.totals)
        turn = ResponseTurn(generation, writer, lambda response: _save(hub, kept, response))
        if body.background:
            run = await hub.desk().responses.begin(kept, turn, held.pop_all())
            if not body.stream:
                return json_response(run.now.response)
            return _stream(hub, hub.desk().responses.follow(kept.response.id, call.tenant, -1), None)
        if body.stream:
            return holding(_stream(hub, turn, writer), held.pop_all())
        async with turn as turns:
            async for _ in turns:
                pass
        return json_response(writer.response)


async def show(hub: Hub, call: Call[Any]) -> ASGIApp:
    """``GET /responses/{id}``."""
    query: FollowQuery = call.query
    responses = hub.desk().responses
    if query.stream:
        after = query.starting_after if query.starting_after is not None else -1
        return _stream(hub, responses.follow(call.path["id"], call.tenant, after), None)
    return json_response(responses.find(call.path["id"], call.tenant).response)


async def delete(hub: Hub, call: Call[Any]) -> Response:
    """``DELETE /responses/{id}``."""
    await hub.desk().responses.delete(call.path["id"], call.tenant)
    return json_response(ResponseDeleted(call.path["id"]))


async def cancel(hub: Hub, call: Call[Any]) -> Response:
    """``POST /responses/{id}/cancel``."""
    return json_response((await hub.desk().responses.cancel(call.path["id"], call.tenant)).response)


async def input_items(hub: Hub, call: Call[Any]) -> Response:
    """``GET /responses/{id}/input_items``."""
    query: ItemQuery = call.query
    items = hub.desk().responses.find(call.path["id"], call.tenant).own
    ordered = items if query.order == "asc" else items[::-1]
    found, more = page(ordered, query.after, query.limit or _PAGE)
    return json_response(ItemList(found, more, *((found[0].id, found[-1].id) if found else (None, None))))


async def count_tokens(hub: Hub, call: Call[CountResponseRequest]) -> Response:
    """``POST /responses/input_tokens``."""
    _, chat, _ = _wanted(hub, call)
    async with hub.use(call.body.model, call.body.keep_alive, call.body.adapters or ()) as service:
        return json_response(InputTokens(len((await _prompt(service, chat)).prompt.ids)))


def _check(hub: Hub, body: ResponseRequest) -> None:
    if body.background and body.store is False:
        raise HeadraceError("invalid_value", "'background' needs 'store'.", param="store")
    if body.store:
        hub.desk()
    if body.stream_options is not None and not body.stream:
        raise HeadraceError("invalid_value", "'stream_options' needs 'stream': true.", param="stream_options")


def _wanted(hub: Hub, call: Call[Any]) -> tuple[list[KeptItem], ChatRequest, list[KeptItem]]:
    """What was said before, the chat body, and the call's own items."""
    body: CountResponseRequest = call.body
    own = kept_items(body.input)
    past: list[KeptItem] = []
    if body.previous_response_id is not None:
        before = hub.desk().responses.find(body.previous_response_id, call.tenant)
        past = [*before.past, *before.own, *kept_output(before.response.output)]
    return past, chat_body(body, past, own), own


async def _prompt(service: Service, chat: ChatRequest) -> ChatPrompt:
    if isinstance(chat.messages[-1], AssistantMessage):
        message = "The last item can't be the assistant's: its turn is not continued here."
        raise HeadraceError("invalid_value", message, param="input")
    return await chat_prompt(service.language, chat)


async def _save(hub: Hub, kept: KeptResponse, response: ResponseObject) -> None:
    if response.store:
        await hub.desk().responses.store.keep(KeptResponse(response, kept.tenant, kept.past, kept.own))


def _stored(hub: Hub, body: ResponseRequest) -> bool:
    """Whether it is kept: unless it shall not, where there is a folder."""
    return body.store is not False and hub.opened_desk is not None


def _stream(hub: Hub, source: Any, writer: ResponseWriter | None) -> EventStream:
    def failed(error: HeadraceError) -> bytes:
        return writer.fail(error) if writer is not None else b"event: error\ndata: " + error_body(error) + b"\n\n"

    return EventStream(source, b"".join, lambda: b"", hub.settings, StreamDialect(b"", KEEPALIVE, failed))


def _object(body: ResponseRequest, model: str, generation: Generation, *, stored: bool) -> ResponseObject:
    """The response before anything was said."""
    choice = body.tool_choice
    tier = generation.tier
    return ResponseObject(
        id=new_id("resp"), created_at=int(time.time()), status="queued" if body.background else "in_progress",
        background=bool(body.background), instructions=body.instructions, max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {}, model=model, output=[], parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id, store=stored,
        temperature=1.0 if body.temperature is None else body.temperature, top_p=1.0 if body.top_p is None else body.top_p,
        text=body.text if body.text is not None and body.text.format is not None else TextConfig(format=PlainFormat()),
        tool_choice=choice if isinstance(choice, FunctionChoice) else choice or "auto", tools=list(body.tools or ()),
        top_logprobs=body.top_logprobs or 0, service_tier=tier if isinstance(tier, str) else "default",
    )  # fmt: skip
