"""What the relay moves and counts: a flow is two legs, a port is one listener of an app on this worker."""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

from services.router.hold import Hold
from services.router.http import Chunked, Length
from services.router.route import ClientIp, Leader, Listener, Mode, Target

if TYPE_CHECKING:
    from services.router.tunnel.stream import Tunnel
    from services.router.tunnel.way import Way

_XFF: Final = ClientIp.XFF  # a lookup in the enum costs 0.1 us for each connection


class Stage(IntEnum):
    """Where a leg is in its life. OPEN is zero: the hot path tests for it by truth."""

    OPEN = 0
    CONNECTING = 1  # a backend: the connect is on its way
    HELD = 2  # a client: waits for a leader, or for a leader's answer, unread
    HEAD = 3  # a client: its request's head is being read
    PARTING = 4  # a client: was answered by us, what it still sends is thrown away
    CLOSED = 5


class Stream(Protocol):
    """What the relay asks of a socket: one of the kernel's, or a tunnel that has its face."""

    def recv_into(self, buffer: memoryview, /) -> int: ...
    def send(self, data: bytes | memoryview, /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def getsockopt(self, level: int, option: int, /) -> int: ...
    def setsockopt(self, level: int, option: int, value: bytes, /) -> None: ...
    def getsockname(self) -> tuple[str, int]: ...
    def close(self) -> None: ...


class Leg:
    """One socket of a flow. `out` is what waits to be written to it: at most one buffer of the peer's bytes."""

    __slots__ = (
        "active_at", "address", "body", "early", "eof", "fd", "fin", "moved", "out", "peer", "port", "sock", "stage", "tunnel",
    )  # fmt: skip

    def __init__(self, sock: Stream, fd: int, port: Port, stage: Stage, now: float) -> None:
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
        self.tunnel: Tunnel | None = None  # `sock`, where it is one


class Port:
    """A listener of an app, its sockets, its flows and its counters."""

    __slots__ = (
        "app", "bytes_in", "bytes_out", "clients", "drain_at", "epoch", "held", "leader", "listener", "mode", "reason",
        "refused", "target", "total", "trouble", "way",
    )  # fmt: skip

    def __init__(self, app: str, listener: Listener) -> None:
        self.app = app
        self.listener = listener
        self.target: Target | None = None
        self.leader: Leader | None = None  # of a tunnel
        self.epoch = 0
        self.way: Way | None = None  # of a tunnel, once somebody asked for it
        self.trouble = ""  # why its leader does not serve, as seen from here
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


Address = tuple[str, int]
Welcome = Callable[[Port, Mode, socket.SocketType, int, Address], None]


class Door:
    """A listening socket of a port. A port has one for IPv4 and, where the host has it, one for IPv6."""

    __slots__ = ("fd", "opens_at", "port", "sock", "welcome")

    def __init__(self, port: Port, sock: socket.socket, welcome: Welcome) -> None:
        self.port = port
        self.sock = sock
        self.welcome = welcome
        self.fd = sock.fileno()
        self.opens_at = 0.0  # not accepting until then: the system was out of something
