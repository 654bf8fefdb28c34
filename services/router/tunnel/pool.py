"""Connections to the router of one leader: opened, proven, kept warm, given to one client each.

A connection is used once, and a few wait ready, so that a client costs no handshake of its own. Sessions are resumed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections import deque
from enum import IntEnum
from typing import Final, Protocol

import msgspec

from piccolod.errors import PiccoloError
from services.router.deadlines import Deadlines
from services.router.flow import Leg, Port
from services.router.legs import Legs
from services.router.reception import tune
from services.router.route import Leader
from services.router.tunnel.security import Security
from services.router.tunnel.stream import Tunnel
from services.router.tunnel.wire import WORDS_BYTES, Answer, Preamble, answer_of

_NEW: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
_SESSION_S: Final = 60.0  # then a newer ticket is kept
_REST_S: Final = 1.0  # between two tries to keep some ready where nobody waits


class At(IntEnum):
    """Where a line is in its life."""

    CONNECTING = 0
    SHAKING = 1
    READY = 2
    ASKING = 3
    OVER = 4  # closed, or the leg of a flow


class Line:
    """One connection to the leader, until a client has it. `client`: for whom it asks."""

    __slots__ = ("at", "client", "fd", "pool", "ready_at", "rested", "sock", "tunnel")

    def __init__(self, pool: Pool, sock: socket.SocketType) -> None:
        self.pool = pool
        self.sock = sock
        self.fd = sock.fileno()
        self.at = At.CONNECTING
        self.tunnel: Tunnel | None = None
        self.client: Leg | None = None
        self.ready_at = 0.0
        self.rested = False  # long enough to have died unseen, when it was taken

    def event(self, mask: int) -> None:
        self.pool.event(self, mask)


class Asker(Protocol):
    """Who needs the lines."""

    def has_ready(self, pool: Pool) -> None: ...

    def has_failed(self, pool: Pool, reason: str) -> None: ...

    def has_answered(self, line: Line, answer: Answer) -> None: ...

    def has_broken(self, line: Line, reason: str, *, stale: bool) -> None: ...


class Pool:
    """`waiting`: the ports that have clients for this leader."""

    def __init__(self, legs: Legs, buffer: memoryview, leader: Leader, security: Security, asker: Asker) -> None:
        self.leader: Final = leader
        self.waiting: dict[Port, None] = {}
        self._legs = legs
        self._limits = legs.limits
        self._buffer = buffer
        self._security = security
        self._asker = asker
        self._opening: Deadlines[Line] = Deadlines()
        self._ready: deque[Line] = deque()
        self._asking: Deadlines[Line] = Deadlines()
        self._session: ssl.SSLSession | None = None
        self._session_at = 0.0
        self._needed_at = 0.0
        self._rests_until = 0.0

    @property
    def lines(self) -> int:
        return len(self._opening) + len(self._ready) + len(self._asking)

    @property
    def ready(self) -> int:
        return len(self._ready)

    def need(self, now: float) -> None:
        """Somebody came, or may come. A line for each who waits is opened now; those that are kept ready follow with the next
        tick, for a handshake beside a client that has its line would only delay it."""
        self._needed_at = now
        if self.waiting:
            self._fill(now, 0)

    def fill(self, now: float) -> None:
        """Opens what is missing: a line for each who waits, and some beside."""
        needed = now - self._needed_at < self._limits.warm_s and now >= self._rests_until
        self._fill(now, self._limits.warm if needed else 0)

    def _fill(self, now: float, spare: int) -> None:
        waiting = sum(port.way.wants(now) for port in self.waiting if port.way is not None)
        missing = waiting + spare - len(self._ready) - len(self._opening)
        for _ in range(min(missing, self._limits.shaking - len(self._opening))):
            if not self._open(now):
                return

    def take(self) -> Line | None:
        """The line that is ready for the shortest time: the others may have died."""
        return self._ready.pop() if self._ready else None

    def ask(self, line: Line, client: Leg, preamble: Preamble, now: float) -> None:
        """Its answer, or its end, is told to the asker."""
        assert line.tunnel is not None
        line.at = At.ASKING
        line.client = client
        line.rested = now - line.ready_at >= _REST_S
        self._asking.add(line, now + self._limits.ask_s)
        try:
            line.tunnel.say(_ENCODER.encode(preamble))
        except OSError as error:
            self._broke(line, _words(error))

    def put_back(self, line: Line, now: float) -> None:
        """Nothing was done with it: it may serve the next one."""
        self._asking.discard(line)
        line.at, line.client, line.ready_at = At.READY, None, now
        self._ready.append(line)

    def give_away(self, line: Line) -> None:
        """It belongs to a flow now."""
        self._asking.discard(line)
        line.at = At.OVER

    def drop(self, line: Line) -> None:
        if line.at is At.OVER:
            return
        self._opening.discard(line)
        self._asking.discard(line)
        if line.at is At.READY:
            self._ready.remove(line)
        line.at = At.OVER
        self._legs.unseat(line, line.sock)

    def close(self) -> None:
        for line in [*self._opening, *self._ready, *self._asking]:
            self.drop(line)

    def tick(self, now: float) -> None:
        for line in self._opening.expired(now):
            self._broke(line, "no answer in time")
        for line in self._asking.expired(now):
            line.rested = False
            self._broke(line, "no answer in time")
        while self._ready and now - self._ready[0].ready_at >= self._limits.warm_s:
            self.drop(self._ready[0])
        self.fill(now)

    # --- inside

    def event(self, line: Line, mask: int) -> None:
        try:
            if line.at is At.CONNECTING:
                self._connected(line, mask)
            elif line.at is At.SHAKING:
                self._shake(line)
            else:
                self._listen(line)
        except PiccoloError as error:
            self._broke(line, error.detail)
        except OSError as error:
            self._broke(line, _words(error))

    def _open(self, now: float) -> bool:
        """False: it cannot be begun."""
        leader = self.leader
        try:
            sock = socket.SocketType(socket.AF_INET6 if ":" in leader.address else socket.AF_INET, _NEW)
        except OSError as error:
            self._fail(_words(error), now)
            return False
        tune(sock)
        failure = sock.connect_ex((leader.address, leader.port))
        if failure not in (0, errno.EINPROGRESS):
            sock.close()
            self._fail(os.strerror(failure), now)
            return False
        line = Line(self, sock)
        self._opening.add(line, now + self._limits.shake_s)
        if not self._legs.seat(line):
            self.drop(line)
            self._fail("this node is out of memory", now)
            return False
        return True

    def _connected(self, line: Line, mask: int) -> None:
        if failure := line.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failure, os.strerror(failure))
        if not mask & select.EPOLLOUT:
            return
        line.tunnel = Tunnel(line.sock, line.fd, self._security.client(), server=False, session=self._session)
        line.at = At.SHAKING
        self._shake(line)

    def _shake(self, line: Line) -> None:
        assert line.tunnel is not None
        if not line.tunnel.handshake(self._buffer):
            return
        peer = self._security.peer(line.tunnel.tls)
        if peer.node != self.leader.node:
            raise OSError(errno.EACCES, f"{peer.node} answers there")
        self._opening.discard(line)
        line.at, line.ready_at = At.READY, self._legs.now
        self._ready.append(line)
        self._listen(line)
        if line.at is At.READY:
            self._asker.has_ready(self)

    def _listen(self, line: Line) -> None:
        """Tickets for sessions come before the answer."""
        tunnel = line.tunnel
        assert tunnel is not None
        tunnel.push()
        words = tunnel.hear(self._buffer, WORDS_BYTES)
        if words is not None and line.at is At.ASKING:
            self._keep_session(tunnel)
            self._asker.has_answered(line, answer_of(words))
        elif words is not None:
            raise OSError(errno.EPROTO, "it spoke without being asked")

    def _keep_session(self, tunnel: Tunnel) -> None:
        now = self._legs.now
        if self._session is None or now - self._session_at >= _SESSION_S:
            self._session, self._session_at = tunnel.tls.session, now

    def _broke(self, line: Line, reason: str) -> None:
        now = self._legs.now
        at = line.at
        self.drop(line)
        # Whoever was renewed, removed or restarted is met anew.
        self._session = None
        if at is At.ASKING:
            self._asker.has_broken(line, reason, stale=line.rested)
        elif at is not At.READY or now - line.ready_at < _REST_S:
            self._fail(reason, now)

    def _fail(self, reason: str, now: float) -> None:
        self._rests_until = now + _REST_S
        self._asker.has_failed(self, f"{self.leader.node} cannot be reached: {reason}")


_ENCODER: Final = msgspec.msgpack.Encoder()


def _words(error: OSError) -> str:
    return error.strerror or str(error)
