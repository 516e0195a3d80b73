"""Answers that hold something until they have been sent."""

from __future__ import annotations

from contextlib import AsyncExitStack

from starlette.types import ASGIApp, Receive, Scope, Send


def holding(answer: ASGIApp, held: AsyncExitStack) -> ASGIApp:
    """The same answer; what is held for it is let go of when it has been sent."""

    async def send_all(scope: Scope, receive: Receive, send: Send) -> None:
        async with held:
            await answer(scope, receive, send)

    return send_all
