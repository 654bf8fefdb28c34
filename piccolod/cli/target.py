"""Where piccolod listens, and a connection to it that is not open yet."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from piccolod.errors import Invalid

_BLOCK_BYTES: Final = 256 * 2**10


@dataclass(frozen=True, slots=True)
class Target:
    """Where piccolod listens: `url`, or the unix socket when that is empty."""

    socket: str
    url: str = ""
    token: str = ""

    def __str__(self) -> str:
        return self.url or self.socket


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout, blocksize=_BLOCK_BYTES)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connect_to(target: Target, timeout: float | None) -> http.client.HTTPConnection:
    if not target.url:
        return _UnixConnection(target.socket, timeout)
    parts = urlsplit(target.url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise Invalid(f"{target.url!r} is not a URL of piccolod", hint="write it as http://127.0.0.1:8080")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, port, timeout=timeout, blocksize=_BLOCK_BYTES)
