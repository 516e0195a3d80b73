"""The one router table: every route, its aliases, its body and its answers; OpenAPI and the auth test are made from it."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from starlette.responses import Response

from headrace.server import (
    adapters,
    batches,
    chat,
    completions,
    embeddings,
    files,
    fine_tuning,
    instances,
    messages,
    models,
    operations,
    responses,
    scoring,
    tokens,
)
from headrace.server.console import data as console
from headrace.server.endpoint import Endpoint
from headrace.server.hub import Hub
from headrace.server.openapi import openapi
from headrace.server.operations import Health, Version
from headrace.server.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from headrace.server.protocol.batches import BatchList, BatchObject, BatchRequest, PageQuery
from headrace.server.protocol.chat import ChatChunk, ChatCompletion, ChatRequest
from headrace.server.protocol.completions import Completion, CompletionRequest
from headrace.server.protocol.console import ConsoleData, ConsoleQuery, Findings
from headrace.server.protocol.embeddings import EmbeddingList, EmbeddingRequest
from headrace.server.protocol.files import FileDeleted, FileList, FileObject, FileQuery, Upload
from headrace.server.protocol.instances import DrainRequest, InstanceList, InstanceQuery, RolesRequest, UndrainRequest
from headrace.server.protocol.messages import CountRequest, MessageAnswer, MessageEvent, MessageRequest, TokenCount
from headrace.server.protocol.responses import (
    CountResponseRequest,
    FollowQuery,
    InputTokens,
    ItemList,
    ItemQuery,
    ResponseDeleted,
    ResponseEvent,
    ResponseObject,
    ResponseRequest,
)
from headrace.server.protocol.scoring import Ranking, RerankRequest, ScoreList, ScoreRequest
from headrace.server.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    LoadRequest,
    ModelCard,
    ModelList,
    RenderedList,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
    TokenizerQuery,
    UnloadRequest,
)
from headrace.server.protocol.tuning import CheckpointList, EventList, JobList, JobObject, JobQuery, JobRequest, ModelDeleted
from headrace.server.rendering import MessagesErrorBody, encode_json, json_bytes
from headrace.server.requests import Call


async def describe(hub: Hub, call: Call[Any]) -> Response:
    """This API as OpenAPI."""
    return json_bytes(await asyncio.to_thread(_description))


@cache
def _description() -> bytes:
    """Always the same, and 40 ms of work: done once, and not on the event loop."""
    return encode_json(openapi(ENDPOINTS))


GENERATING: tuple[Endpoint, ...] = tuple(
    Endpoint("POST", path, handler, summary, body, answer, event, by_model=True, metered=True)
    for path, handler, summary, body, answer, event in (
        ("/chat/completions", chat.complete, "Answer a conversation.", ChatRequest, ChatCompletion, ChatChunk),
        ("/completions", completions.complete, "Continue a text.", CompletionRequest, Completion, Completion),
        ("/embeddings", embeddings.embed, "Vectors of texts.", EmbeddingRequest, EmbeddingList, None),
    )
)
"""The operations that run a model; batches may name them."""

LASTING: tuple[Endpoint, ...] = (
    Endpoint(
        "POST",
        "/responses",
        responses.create,
        "Answer a conversation that may be gone on with.",
        ResponseRequest,
        ResponseObject,
        ResponseEvent,
        metered=True,
    ),
    Endpoint(
        "POST",
        "/responses/input_tokens",
        responses.count_tokens,
        "Tokens of a response's prompt.",
        CountResponseRequest,
        InputTokens,
    ),
    Endpoint("GET", "/responses/{id}", responses.show, "A kept response.", None, ResponseObject, ResponseEvent, query=FollowQuery),
    Endpoint("DELETE", "/responses/{id}", responses.delete, "Forget a response.", None, ResponseDeleted),
    Endpoint("POST", "/responses/{id}/cancel", responses.cancel, "End a background response.", None, ResponseObject),
    Endpoint("GET", "/responses/{id}/input_items", responses.input_items, "What was said to it.", None, ItemList, query=ItemQuery),
    Endpoint("POST", "/files", files.upload, "Keep a file.", None, FileObject, form=Upload),
    Endpoint("GET", "/files", files.list_files, "The kept files.", None, FileList, query=FileQuery),
    Endpoint("GET", "/files/{id}", files.show, "One kept file.", None, FileObject),
    Endpoint("DELETE", "/files/{id}", files.delete, "Drop a file.", None, FileDeleted),
    Endpoint("GET", "/files/{id}/content", files.content, "The bytes of a file."),
    Endpoint("POST", "/batches", batches.create, "Run the calls of a file when there is time.", BatchRequest, BatchObject),
    Endpoint("GET", "/batches", batches.list_batches, "The batches.", None, BatchList, query=PageQuery),
    Endpoint("GET", "/batches/{id}", batches.show, "One batch.", None, BatchObject),
    Endpoint("POST", "/batches/{id}/cancel", batches.cancel, "End a batch early.", None, BatchObject),
    Endpoint("DELETE", "/models/{id:path}", fine_tuning.delete_model, "Drop a fine-tuned model.", None, ModelDeleted),
    Endpoint("POST", "/fine_tuning/jobs", fine_tuning.create, "Train an adapter.", JobRequest, JobObject),
    Endpoint("GET", "/fine_tuning/jobs", fine_tuning.list_jobs, "The fine-tuning jobs.", None, JobList, query=JobQuery),
    Endpoint("GET", "/fine_tuning/jobs/{id}", fine_tuning.show, "One job.", None, JobObject),
    Endpoint(
        "GET", "/fine_tuning/jobs/{id}/events", fine_tuning.events, "What happened to a job.", None, EventList, query=JobQuery
    ),
    Endpoint(
        "GET",
        "/fine_tuning/jobs/{id}/checkpoints",
        fine_tuning.checkpoints,
        "Its checkpoints.",
        None,
        CheckpointList,
        query=JobQuery,
    ),
    Endpoint("POST", "/fine_tuning/jobs/{id}/pause", fine_tuning.pause, "Pause a job.", None, JobObject),
    Endpoint("POST", "/fine_tuning/jobs/{id}/resume", fine_tuning.resume, "Go on with a job.", None, JobObject),
    Endpoint("POST", "/fine_tuning/jobs/{id}/cancel", fine_tuning.cancel, "End a job.", None, JobObject),
)
"""What the server keeps, and does without a client waiting for it."""

SCORING: tuple[Endpoint, ...] = tuple(
    Endpoint("POST", path, handler, summary, body, answer, by_model=True, metered=True, versioned=versioned)
    for path, versioned, handler, summary, body, answer in (
        ("/rerank", True, scoring.rerank, "Documents in the order of their relevance.", RerankRequest, Ranking),
        ("/v2/rerank", False, scoring.rerank, "The same, where clients look for it.", RerankRequest, Ranking),
        ("/score", True, scoring.score, "How well texts fit each other.", ScoreRequest, ScoreList),
    )
)
"""Operations that read texts and write none."""

ENDPOINTS: tuple[Endpoint, ...] = (
    *GENERATING,
    *SCORING,
    *(
        Endpoint("POST", path, handler, summary, body, answer, by_model=True)
        for path, handler, summary, body, answer in (
            ("/chat/completions/render", chat.render, "The prompt of a conversation, not run.", ChatRequest, RenderedList),
            ("/completions/render", completions.render, "The prompts of a call, not run.", CompletionRequest, RenderedList),
            ("/tokenize", tokens.tokenize, "Token ids of a text.", TokenizeRequest, TokenizeAnswer),
            ("/detokenize", tokens.detokenize, "Text of token ids.", DetokenizeRequest, DetokenizeAnswer),
        )
    ),
    Endpoint(
        "GET",
        "/tokenizer_info",
        tokens.describe,
        "Special tokens and chat template of a model.",
        None,
        TokenizerInfo,
        by_model=True,
        query=TokenizerQuery,
    ),
    Endpoint(
        "POST",
        "/messages",
        messages.create,
        "Answer a conversation, in the words of the Messages API.",
        MessageRequest,
        MessageAnswer,
        MessageEvent,
        by_model=True,
        metered=True,
        refusal=MessagesErrorBody,
    ),
    Endpoint(
        "POST",
        "/messages/count_tokens",
        messages.count_tokens,
        "Tokens of a conversation's prompt.",
        CountRequest,
        TokenCount,
        by_model=True,
        refusal=MessagesErrorBody,
    ),
    Endpoint("GET", "/models", models.list_models, "The served models and their state.", None, ModelList),
    Endpoint("GET", "/models/{id:path}", models.show_model, "One served model.", None, ModelCard),
    Endpoint("POST", "/models/load", models.load, "Bring a model into memory.", LoadRequest, ModelCard),
    Endpoint("POST", "/models/unload", models.unload, "Send a model out of memory.", UnloadRequest, ModelCard),
    Endpoint(
        "GET", "/instances", instances.list_instances, "Engine processes of a model.", None, InstanceList, query=InstanceQuery
    ),
    Endpoint("POST", "/instances/roles", instances.roles, "Change what instances take.", RolesRequest, InstanceList),
    Endpoint("POST", "/instances/drain", instances.drain, "Take an instance out of use.", DrainRequest, InstanceList),
    Endpoint("POST", "/instances/undrain", instances.undrain, "Use an instance again.", UndrainRequest, InstanceList),
    *LASTING,
    Endpoint("POST", "/load_lora_adapter", adapters.load, "Serve an adapter from a folder.", LoadAdapterRequest, ModelCard),
    Endpoint("POST", "/unload_lora_adapter", adapters.unload, "Take an adapter out.", UnloadAdapterRequest, ModelCard),
    Endpoint("GET", "/livez", operations.livez, "Liveness probe.", None, Health, versioned=False, probe=True),
    Endpoint("GET", "/readyz", operations.readyz, "Readiness probe.", None, Health, versioned=False, probe=True),
    Endpoint("GET", "/health", operations.readyz, "Same as /readyz.", None, Health, versioned=False, probe=True),
    Endpoint("GET", "/metrics", operations.metrics, "Prometheus metrics.", versioned=False, probe=True),
    Endpoint("GET", "/version", operations.version, "Release.", None, Version, versioned=False, probe=True),
    Endpoint(
        "GET",
        "/console/data",
        console.data,
        "What the console shows.",
        None,
        ConsoleData,
        versioned=False,
        probe=True,
        query=ConsoleQuery,
    ),
    Endpoint("GET", "/console/doctor", console.doctor, "The doctor's findings.", None, Findings, versioned=False, probe=True),
    Endpoint("GET", "/openapi.json", describe, "This description.", versioned=False, probe=True),
)
