"""The one router table: every route, its aliases, its body and its answers; OpenAPI and the auth test are made from it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from headrace.server import chat, completions, embeddings, operations, tokens
from headrace.server.endpoint import Endpoint
from headrace.server.openapi import openapi
from headrace.server.operations import Health, Version
from headrace.server.protocol.chat import ChatChunk, ChatCompletion, ChatRequest
from headrace.server.protocol.completions import Completion, CompletionRequest
from headrace.server.protocol.embeddings import EmbeddingList, EmbeddingRequest
from headrace.server.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    ModelCard,
    ModelList,
    RenderedList,
    TokenizeAnswer,
    TokenizeRequest,
)
from headrace.server.rendering import json_response
from headrace.server.requests import Call
from headrace.server.service import Service


async def describe(service: Service, call: Call[Any]) -> Response:
    """This API as OpenAPI."""
    return json_response(openapi(ENDPOINTS))


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "POST", "/chat/completions", chat.complete, "Answer a conversation.", ChatRequest, ChatCompletion, ChatChunk, metered=True
    ),
    Endpoint(
        "POST", "/completions", completions.complete, "Continue a text.", CompletionRequest, Completion, Completion, metered=True
    ),
    Endpoint("POST", "/embeddings", embeddings.embed, "Vectors of texts.", EmbeddingRequest, EmbeddingList, metered=True),
    Endpoint("POST", "/chat/completions/render", chat.render, "The prompt of a conversation, not run.", ChatRequest, RenderedList),
    Endpoint("POST", "/completions/render", completions.render, "The prompts of a call, not run.", CompletionRequest, RenderedList),
    Endpoint("POST", "/tokenize", tokens.tokenize, "Token ids of a text.", TokenizeRequest, TokenizeAnswer),
    Endpoint("POST", "/detokenize", tokens.detokenize, "Text of token ids.", DetokenizeRequest, DetokenizeAnswer),
    Endpoint("GET", "/models", tokens.list_models, "The served models.", None, ModelList),
    Endpoint("GET", "/models/{id:path}", tokens.show_model, "One served model.", None, ModelCard),
    Endpoint("GET", "/livez", operations.livez, "Liveness probe.", None, Health, versioned=False, probe=True),
    Endpoint("GET", "/readyz", operations.readyz, "Readiness probe.", None, Health, versioned=False, probe=True),
    Endpoint("GET", "/health", operations.readyz, "Same as /readyz.", None, Health, versioned=False, probe=True),
    Endpoint("GET", "/metrics", operations.metrics, "Prometheus metrics.", versioned=False, probe=True),
    Endpoint("GET", "/version", operations.version, "Release.", None, Version, versioned=False, probe=True),
    Endpoint("GET", "/openapi.json", describe, "This description.", versioned=False, probe=True),
)
