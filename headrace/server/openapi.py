"""The OpenAPI description, made from the same structs that decode and encode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

import headrace
from headrace.errors import ERROR_TABLE
from headrace.server.endpoint import Endpoint

_REF = "#/components/schemas/{name}"


def openapi(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The whole description as plain values."""
    endpoints = tuple(endpoints)
    structs = {kind for endpoint in endpoints for kind in (*_bodies(endpoint), endpoint.refusal) if kind}
    ordered = sorted(structs, key=str)
    references, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    schemas = dict(zip(ordered, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        for path in endpoint.paths:
            plain = path.replace(":path", "")
            paths.setdefault(plain, {})[endpoint.method.lower()] = _operation(endpoint, plain, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "headrace", "version": headrace.__version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _bodies(endpoint: Endpoint) -> tuple[Any, ...]:
    return endpoint.body, endpoint.answer, endpoint.event, endpoint.form


def _operation(endpoint: Endpoint, path: str, schemas: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.answer is not None:
        content["application/json"] = {"schema": schemas[endpoint.answer]}
    if endpoint.event is not None:
        content["text/event-stream"] = {"schema": schemas[endpoint.event]}
    error = {"application/json": {"schema": schemas[endpoint.refusal]}}
    statuses = sorted({kind.status for kind in ERROR_TABLE.values()})
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method.lower()}{path.replace('/', '_').replace('{', '').replace('}', '')}",
        "responses": {
            "200": {"description": "Done.", **({"content": content} if content else {})},
            **{str(status): {"description": _meanings(status), "content": error} for status in statuses},
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas[endpoint.body]}}}
    if endpoint.form is not None:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schemas[endpoint.form]}}}
    parameters = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}] if "{id}" in path else []
    if endpoint.query is not None:
        fields = msgspec.json.schema_components([endpoint.query])[1][endpoint.query.__name__]
        parameters += [
            {"name": name, "in": "query", "required": name in fields.get("required", ()), "schema": schema}
            for name, schema in fields["properties"].items()
        ]
    if parameters:
        operation["parameters"] = parameters
    return operation


def _meanings(status: int) -> str:
    return " ".join(f"{kind.code}: {kind.meaning}" for kind in ERROR_TABLE.values() if kind.status == status)
