"""The address is taken before anything is said or loaded."""

from __future__ import annotations

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
