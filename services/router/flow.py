"""What the relay moves and counts: a flow is two legs, a port is one listener of an app on this worker."""

from __future__ import annotations

import socket
from enum import IntEnum
from typing import Final

from services.router.hold import Hold
from services.router.http import Chunked, Length
from services.router.route import ClientIp, Listener, Mode, Target

_XFF: Final = ClientIp.XFF  # a lookup in the enum costs 0.1 us for each connection


class Stage(IntEnum):
    """Where a leg is in its life. OPEN is zero: the hot path tests for it by truth."""

    OPEN = 0
    CONNECTING = 1  # a backend: the connect is on its way
    HELD = 2  # a client: waits for a leader, unread
    HEAD = 3  # a client: its request's head is being read
    PARTING = 4  # a client: was answered by us, what it still sends is thrown away
    CLOSED = 5


class Leg:
    """One socket of a flow. `out` is what waits to be written to it: at most one buffer of the peer's bytes."""

    __slots__ = ("active_at", "address", "body", "early", "eof", "fd", "fin", "moved", "out", "peer", "port", "sock", "stage")

    def __init__(self, sock: socket.SocketType, fd: int, port: Port, stage: Stage, now: float) -> None:
        self.sock = sock
        self.fd = fd
        self.port = port
        self.stage = stage
        self.active_at = now
        self.address: tuple[str, int] | None = None  # of the client; None on a backend
        self.peer: Leg | None = None
        self.out: memoryview | None = None
        self.early = b""  # read from the client before there was a backend
        self.body: Length | Chunked | None = None  # xff: what may still be read from this client
        self.eof = False  # it sends no more
        self.fin = False  # it gets no more once `out` is written
        self.moved = 0  # bytes received from it


class Port:
    """A listener of an app, its sockets, its flows and its counters."""

    __slots__ = (
        "app", "bytes_in", "bytes_out", "clients", "drain_at", "held", "listener", "mode", "reason", "refused", "target",
        "total",
    )  # fmt: skip

    def __init__(self, app: str, listener: Listener) -> None:
        self.app = app
        self.listener = listener
        self.target: Target | None = None
        self.mode = Mode.HOLD
        self.reason = ""
        self.clients: set[Leg] = set()
        self.held: Hold[Leg] = Hold()
        self.drain_at: float | None = None  # flows of before are cut then
        self.total = 0
        self.refused = 0
        self.bytes_in = 0  # of ended flows
        self.bytes_out = 0

    @property
    def speaks_http(self) -> bool:
        return self.listener.protocol.speaks_http

    @property
    def reads_head(self) -> bool:
        return self.listener.client_ip is _XFF

    def moved(self) -> tuple[int, int]:
        """Bytes from clients and to clients, running flows included."""
        received = self.bytes_in + sum(client.moved for client in self.clients)
        returned = self.bytes_out + sum(client.peer.moved for client in self.clients if client.peer is not None)
        return received, returned


class Door:
    """A listening socket of a port. A port has one for IPv4 and, where the host has it, one for IPv6."""

    __slots__ = ("fd", "opens_at", "port", "sock")

    def __init__(self, port: Port, sock: socket.socket) -> None:
        self.port = port
        self.sock = sock
        self.fd = sock.fileno()
        self.opens_at = 0.0  # not accepting until then: the system was out of something
