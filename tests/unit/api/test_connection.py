"""Connections: bounded in number and time; a stop lets calls under way end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from piccolod import clock
from piccolod.protocol.apps import ListApps
from services.api import connection, server
from tests.unit.api.node import Node


def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    give_up_at = clock.now() + within_s
    while not condition():
        assert clock.now() < give_up_at, "the condition did not come true"
        time.sleep(0.01)


def dial(node: Node, data: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", node.port), timeout=10)
    sock.sendall(data)
    return sock


def ended(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_who_sends_no_head_is_cut(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "_HEAD_S", 0.3)
    with dial(node) as silent, dial(node, b"GET / HT") as slow:
        assert ended(silent)
        assert ended(slow)


def test_who_drips_its_head_byte_by_byte_is_cut(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "_HEAD_S", 0.3)
    with dial(node, b"GET / HTTP/1.1\r\nHost: ") as sock:
        began_at = clock.now()
        try:
            while clock.now() < began_at + 8:
                sock.sendall(b"a")
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert clock.now() - began_at < 5


def test_who_does_not_send_its_body_is_cut(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "_BODY_SILENCE_S", 0.3)
    head = b"POST /api/v1/crypto/unlock HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with dial(node, head) as sock:
        assert ended(sock)


def test_who_drips_its_body_is_cut(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "_BODY_GRACE_S", 0.3)
    head = (
        b"POST /api/v1/crypto/unlock HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9999\r\n\r\n"
    )
    with dial(node, head) as sock:
        began_at = clock.now()
        try:
            while clock.now() < began_at + 8:
                sock.sendall(b"a")
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert clock.now() - began_at < 5


def test_who_does_not_read_the_answer_is_cut(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "_WRITE_S", 0.3)
    ask = b"GET /api/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def connected() -> int:
        return sum(len(book.state.connections) for book in node.service._server._books)

    with dial(node) as sock:
        until(lambda: connected() == 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.5)
        try:
            sock.sendall(ask * 400)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        until(lambda: connected() == 0)


def test_too_many_connections_of_one_client_are_refused_and_the_socket_of_the_admin_serves(node: Node) -> None:
    many = [dial(node) for _ in range(128)]
    try:
        with dial(node) as one_more:
            assert one_more.recv(4096).startswith(b"HTTP/1.1 503")
        with node.unix() as client:
            assert client.get("/health/live").status_code == 200
    finally:
        for each in many:
            each.close()
    until(lambda: all(not book.by_client for book in node.service._server._books))
    with node.tcp() as client:
        assert client.get("/health/live").status_code == 200


def test_pipelined_requests_are_answered_in_order(node: Node) -> None:
    ask = b"GET /api/v1/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with dial(node, ask * 3) as sock:
        got = b""
        while got.count(b'{"live":true}') < 3:
            got += sock.recv(65536)


def test_a_call_under_way_is_answered_when_the_module_stops(node: Node) -> None:
    entered = threading.Event()

    class Slow:
        async def call(self, request: Any, **_: Any) -> Any:
            entered.set()
            await asyncio.sleep(0.3)
            return await node.modules.call(request, timeout_s=1)

    node.module.call = Slow().call
    got: list[int] = []

    def ask() -> None:
        with node.unix() as client:
            got.append(client.get("/apps").status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    assert entered.wait(5)
    asyncio.run_coroutine_threadsafe(node.service.stop(), node.loop).result(5)
    thread.join(5)
    assert got == [200]
    assert len(node.modules.asked(ListApps)) == 1


def test_a_call_on_its_way_is_answered_when_the_module_stops(node: Node, monkeypatch: Any) -> None:
    """Connected, and not heard yet: a restart of the module is nothing that a client could notice."""
    monkeypatch.setattr(server, "_FIRST_CALL_S", 5.0)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(node.module.paths.api_socket))
        until(lambda: node.service._server._connections())
        stopping = asyncio.run_coroutine_threadsafe(node.service._server.close(5.0), node.loop)
        until(lambda: all(book.closing for book in node.service._server._books))
        sock.sendall(b"GET /api/v1/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = b""
        while part := sock.recv(65536):
            got += part
        assert got.startswith(b"HTTP/1.1 200") and got.endswith(b'{"live":true}')
        stopping.result(5)


def test_who_says_nothing_does_not_hold_a_stop_up(node: Node) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(node.module.paths.api_socket))
        until(lambda: node.service._server._connections())
        began = time.monotonic()
        asyncio.run_coroutine_threadsafe(node.service._server.close(5.0), node.loop).result(5)
        assert time.monotonic() - began < 2.0
        assert sock.recv(1) == b""


def test_an_idle_server_does_not_wake(node: Node) -> None:
    with node.tcp() as client:
        client.get("/health/live")
    until(lambda: node.service._server._sweep is None)
