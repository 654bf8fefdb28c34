"""Clients that are spoken with by the router itself: their request's head is read (xff), or they are answered and sent away."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from services.router.deadlines import Deadlines
from services.router.flow import Leg, Stage
from services.router.http import Refused, answer, rewrite
from services.router.limits import Limits
from services.router.proxy_protocol import unmapped

_ROUNDS: Final = range(4)


class Introduction:
    """`dial` gets a client whose head is read and rewritten, `end` one that is done, `reset` one that failed."""

    def __init__(
        self,
        limits: Limits,
        buffer: memoryview,
        dial: Callable[[Leg], None],
        end: Callable[[Leg], None],
        reset: Callable[[Leg], None],
    ) -> None:
        self._limits = limits
        self._buffer = buffer
        self._dial = dial
        self._end = end
        self._reset = reset
        self._heads: Deadlines[Leg] = Deadlines()
        self._parting: Deadlines[Leg] = Deadlines()

    def begin(self, client: Leg, now: float) -> None:
        """Reads the head of the client's request; the client is dialled for when it is complete."""
        client.stage = Stage.HEAD
        self._heads.add(client, now + self._limits.head_s)
        self.read(client, now)

    def read(self, client: Leg, now: float) -> None:
        while client.stage is Stage.HEAD:
            try:
                count = client.sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self._reset(client)
                return
            client.moved += count
            client.early += bytes(self._buffer[:count])
            try:
                self._take(client)
            except Refused as refused:
                self.farewell(client, answer(refused.status, refused.reason), now)

    def _take(self, client: Leg) -> None:
        """What follows the request's body is not passed on: it would be a request that nobody here has read."""
        address = client.address
        head = rewrite(client.early, unmapped(address[0]) if address else "")
        if head is None:
            return
        rest = memoryview(client.early)[head.used :]
        client.early = head.rewritten + bytes(rest[: head.body.take(rest)])
        client.body = head.body
        self._heads.discard(client)
        self._dial(client)

    def farewell(self, client: Leg, last: bytes, now: float) -> None:
        """Answers and closes in the order that lets the answer arrive: FIN, then what the client still sends is read."""
        self._heads.discard(client)
        client.early = b""
        client.stage = Stage.PARTING
        self._parting.add(client, now + self._limits.farewell_s)
        try:
            client.sock.send(last)
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._reset(client)
            return
        self.discard(client)

    def discard(self, client: Leg) -> None:
        """Throws away what a parting client still sends; one that sends without end is reset."""
        for _ in _ROUNDS:
            try:
                count = client.sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self._end(client)
                return
        self._reset(client)

    def leave(self, client: Leg) -> None:
        self._heads.discard(client)
        self._parting.discard(client)

    def tick(self, now: float) -> None:
        for client in self._heads.expired(now):
            self.farewell(client, answer(408, "no complete request in time"), now)
        for client in self._parting.expired(now):
            self._reset(client)
