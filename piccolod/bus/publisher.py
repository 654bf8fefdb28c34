"""Sends a module's events to the broker, and says its retained ones again whenever a broker is new."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Final

import zmq

from piccolod import clock
from piccolod.bus.drain import Drain
from piccolod.bus.envelope import HIGH_WATER, RECONNECT_MS, VERSION, Header, encode, topic_of
from piccolod.protocol.base import Event

_ANNOUNCE_AT_ONCE: Final = HIGH_WATER // 2
_WAITING: Final = 256  # events that are no state and wait for a broker; the oldest are dropped


class Publisher:
    """Never blocks and never fails: an event is a hint, and state is said again.

    The socket is an XPUB, so that the broker's subscription tells when a broker is there: before that a PUB would drop.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path, src: str, inst: str) -> None:
        self._sock = context.socket(zmq.XPUB)
        # a reconnect repeats a subscription that the pipe still knows; VERBOSE shows it: a new broker is there
        self._sock.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._sock.set_hwm(HIGH_WATER)
        self._sock.setsockopt(zmq.LINGER, 200)
        self._sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._sock.connect(f"ipc://{path}")
        self._src, self._inst = src, inst
        self._seq = 0
        self._connected = False
        self._retained: dict[str, Event] = {}
        self._waiting: deque[Event] = deque(maxlen=_WAITING)
        self._drain = Drain(self._sock, self._take)

    def publish(self, event: Event) -> None:
        if event.retained:
            self._retained[topic_of(event)] = event
            if self._connected:
                self._send(event)
        elif self._connected:
            self._send(event)
        else:
            self._waiting.append(event)

    def close(self) -> None:
        self._drain.close()

    def _take(self) -> bool:
        try:
            message = self._sock.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._connected = message[:1] == b"\x01"
        if self._connected:
            self._announce(list(self._retained))
            while self._waiting:
                self._send(self._waiting.popleft())
        return True

    def _announce(self, topics: list[str]) -> None:
        """All of the state, in parts that fit below the high-water mark."""
        for topic in topics[:_ANNOUNCE_AT_ONCE]:
            if event := self._retained.get(topic):
                self._send(event)
        if rest := topics[_ANNOUNCE_AT_ONCE:]:
            asyncio.get_running_loop().call_later(0.02, self._announce, rest)

    def _send(self, event: Event) -> None:
        self._seq += 1
        header = Header(
            VERSION, event.type, self._src, self._inst, self._seq, 0, 0, clock.now_ns(), clock.wall_ms(), ""
        )  # fmt: skip
        try:
            send = self._sock.send
            send(topic_of(event).encode(), zmq.SNDMORE | zmq.NOBLOCK)
            send(encode(header), zmq.SNDMORE | zmq.NOBLOCK)
            send(encode(event), zmq.NOBLOCK)
        except zmq.Again:
            return
        self._drain.look()
