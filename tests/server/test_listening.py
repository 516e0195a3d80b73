"""The address is taken before anything is said or loaded."""

from __future__ import annotations

import asyncio
import socket

import pytest

from headrace.errors import HeadraceError
from headrace.server.process import listen
from headrace.server.settings import ServerSettings

pytestmark = pytest.mark.server


def test_connections_are_taken_before_the_http_stack_stands() -> None:
    with listen(ServerSettings(port=0)) as sock, socket.create_connection(sock.getsockname(), 5):
        taken, _ = sock.accept()
        taken.close()


def test_an_address_that_listens_already_is_refused_by_name() -> None:
    with listen(ServerSettings(port=0)) as sock, pytest.raises(HeadraceError, match="can't listen on") as caught:
        listen(ServerSettings(port=sock.getsockname()[1]))
    assert caught.value.param == "port"


def test_small_answers_leave_at_once() -> None:
    """asyncio sets TCP_NODELAY where the protocol says TCP: without it each second small write waits for an acknowledgement."""

    async def nodelay() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen(ServerSettings(port=0)) as sock:
            async with await asyncio.start_server(on_connection, sock=sock):
                _, writer = await asyncio.open_connection(*sock.getsockname())
                try:
                    return await asyncio.wait_for(accepted, 5)
                finally:
                    writer.close()

    assert asyncio.run(nodelay()) == 1
