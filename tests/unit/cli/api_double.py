"""A real HTTP server on a unix socket that answers what a test tells it to, and keeps what it was sent."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Sent:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    status: int = 200
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # instead of HTTP

    def encoded(self) -> bytes:
        return b"" if self.document is None else json.dumps(self.document).encode()


Answer = Callable[[Sent], Reply]


class ApiDouble:
    """`on("GET", "/apps", ...)`: replies in turn, the last one for ever. Paths are below /api/v1."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.url = ""
        self._replies: dict[tuple[str, str], list[Reply | Answer]] = {}
        self._lock = threading.Lock()
        self.release = threading.Event()  # ends handlers that hold their answer back

    def on(self, method: str, path: str, *replies: Reply | Answer | Any, status: int = 200) -> None:
        made = [each if isinstance(each, Reply) or callable(each) else Reply(status, each) for each in replies]
        self._replies[method, path if path.startswith("/api") else f"/api/v1{path}"] = made or [Reply(status)]

    def refuse(self, method: str, path: str, status: int, code: str, **more: Any) -> None:
        headers = more.pop("headers", {})
        document = {"type": f"urn:piccolo:problem:{code}", "title": code, "status": status, "code": code, "hint": "",
                    "detail": f"{code} happened", "errors": [], "leader": None, "request_id": "r-1", **more}  # fmt: skip
        self.on(method, path, Reply(status, document, {"Content-Type": "application/problem+json", **headers}))

    def answer(self, sent: Sent) -> Reply:
        with self._lock:
            self.sent.append(sent)
            replies = self._replies.get((sent.method, sent.path))
            if not replies:
                return Reply(404, {"code": "not_found", "detail": f"no {sent.method} {sent.path} in this test"})
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        return reply if isinstance(reply, Reply) else reply(sent)

    def bodies(self, method: str, path: str) -> list[Sent]:
        return [each for each in self.sent if (each.method, each.path) == (method, f"/api/v1{path}")]


def _handler(double: ApiDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = double.answer(Sent(self.command, parts.path, query, headers, self._body()))
            if reply.raw is not None:
                self.wfile.write(reply.raw)
                self.close_connection = True
                return
            content = reply.encoded()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _do

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                return b"".join(self._chunks())
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().strip() or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A client that leaves early is no news."""


class _Tcp(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A client that leaves early is no news."""


@contextmanager
def serving(double: ApiDouble, socket: Path | None) -> Iterator[ApiDouble]:
    """On a unix socket, or on a free port of loopback (`url`) when there is no path."""
    server: socketserver.BaseServer
    server = _Unix(str(socket), _handler(double)) if socket else _Tcp(("127.0.0.1", 0), _handler(double))
    if isinstance(server, _Tcp):
        double.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        double.release.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
