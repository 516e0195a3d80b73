"""The application: the router table mounted under the gate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from headrace.errors import HeadraceError
from headrace.server.auth import KeyRing
from headrace.server.console.assets import page_assets
from headrace.server.endpoint import Endpoint
from headrace.server.gate import Gate
from headrace.server.holding import holding
from headrace.server.hub import Hub
from headrace.server.protocol.decode import decode_query
from headrace.server.rate_limits import Claim
from headrace.server.rendering import STATUS_HUNG_UP, error_response, internal_error, table_error
from headrace.server.requests import TENANT, Call, ClientGone, HangupGuard, declared_length, decoded
from headrace.server.routes import ENDPOINTS


def create_app(hub: Hub, keys: KeyRing | None = None) -> ASGIApp:
    """The ASGI application of a hub; with ``keys`` every route but /livez and the console's page wants one of them."""
    app = Starlette()
    app.router.redirect_slashes = False
    for endpoint in ENDPOINTS:
        handler = _handler(hub, endpoint)
        for path in endpoint.paths:
            app.add_route(path, handler, methods=[endpoint.method], include_in_schema=False)
    assets = page_assets()
    for asset in assets:
        app.add_route(asset.path, asset.answer, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(HeadraceError, _refusal(hub))
    app.add_exception_handler(ClientGone, _hung_up)
    app.add_exception_handler(Exception, _bug)
    return Gate(app, hub, keys, frozenset(asset.path for asset in assets))


def _handler(hub: Hub, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Any:
        request.scope["headrace.route"] = endpoint.path
        if not endpoint.probe:
            hub.check_open()
        tenant = request.scope[TENANT]
        # before anything is read: a flood beyond its limits costs next to nothing
        claim = hub.rate_limits.enter(tenant, declared_length(request)) if endpoint.metered else Claim()
        try:
            body = await decoded(request, hub.settings, endpoint.body) if endpoint.body is not None else None
            query = decode_query(request.query_params.multi_items(), endpoint.query) if endpoint.query is not None else None
            call: Call[Any] = Call(body, request.path_params, request.scope["headrace.request_id"], request, tenant, claim, query)
            if endpoint.body is None and not endpoint.by_model:
                return await endpoint.handler(hub, call)
            return await _answer(hub, endpoint, call)
        except BaseException:
            claim.drop()
            raise

    return handle


async def _answer(hub: Hub, endpoint: Endpoint, call: Call[Any]) -> ASGIApp:
    """Run the handler on the hub, or on the model that the call names, which stays in memory until the answer has been sent."""
    async with AsyncExitStack() as held:
        async with HangupGuard(call.request.receive):
            subject: Any = hub
            if endpoint.by_model:
                body = call.query if endpoint.body is None else call.body
                using = hub.use(body.model, getattr(body, "keep_alive", None), getattr(body, "adapters", None) or ())
                subject = await held.enter_async_context(using)
            answer = await endpoint.handler(subject, call)
        return holding(answer, held.pop_all())


def _refusal(hub: Hub) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HeadraceError)
        if error.code == "rate_limit_exceeded":
            hub.metrics.tenants.of(hub.tenants.label(request.scope[TENANT])).limited.inc()
        headers = {"connection": "close"} if error.kind.status in (408, 413) else None
        return error_response(error, headers, request.url.path)

    return refuse


async def _hung_up(request: Request, error: Exception) -> Response:
    """An answer for the metrics alone; nobody is there to read it."""
    return Response(status_code=STATUS_HUNG_UP)


async def _bug(request: Request, error: Exception) -> Response:
    """What a client sees of a bug; the gate logs it with the request id."""
    return error_response(internal_error(), path=request.url.path)


async def _http_exception(request: Request, error: Exception) -> Response:
    """The router's own refusals: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return error_response(table_error("method_not_allowed"), dict(error.headers or {}), request.url.path)
    return error_response(table_error("not_found"), path=request.url.path)
