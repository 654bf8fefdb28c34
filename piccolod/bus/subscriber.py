"""Receives events: the last value of each state at once, then what changes, and a word when something may be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from piccolod.bus.drain import Drain
from piccolod.bus.envelope import (
    HIGH_WATER,
    MAX_MESSAGE_BYTES,
    RECONNECT_MS,
    UNREADABLE,
    Header,
    SnapshotRequest,
    decode_header,
    decode_snapshot,
    encode,
    prefix_of,
)
from piccolod.protocol.base import Event
from piccolod.protocol.events import EVENTS, Beat

_BEAT_LATE_S: Final = 3.0
_ASK_AGAIN_S: Final = 0.25

Callback = Callable[[Any], None]

# Made once, before the zygote forks: twelve decoders would cost each module 1.5 MiB of its own (measured).
_DECODERS: Final = {name: msgspec.msgpack.Decoder(kind).decode for name, kind in EVENTS.items()}


class Subscriber:
    """Delivers each topic in order and no value older than one it has delivered.

    A gap in `topic_seq`, another epoch, a beat that knows more than was seen, or no beat for 3 s means *resync*: the
    snapshot is asked for, newer state in it is delivered, then `on_resync` callbacks run: they read the truth again.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], subscribe: Path, snapshot: Path) -> None:
        self._events = context.socket(zmq.SUB)
        self._events.set_hwm(HIGH_WATER)
        self._events.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._events.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._events.connect(f"ipc://{subscribe}")
        self._asks = context.socket(zmq.DEALER)
        self._asks.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._asks.setsockopt(zmq.LINGER, 0)
        self._asks.connect(f"ipc://{snapshot}")
        self._loop = asyncio.get_running_loop()
        self._callbacks: dict[str, list[tuple[str | None, Callback]]] = {}
        self._prefixes: set[str] = set()
        self._on_resync: list[Callable[[], None]] = []
        self._epoch = 0
        self._last: dict[str, int] = {}
        self._asked = 0
        self._answered = 0
        self._resync_due = False
        self._beat_timer: asyncio.TimerHandle | None = None
        self.resyncs = 0
        self.unreadable = 0
        self._subscribe(prefix_of(Beat))
        self._event_drain = Drain(self._events, self._take_event)
        self._ask_drain = Drain(self._asks, self._take_snapshot)
        self._expect_beat()

    def on(self, kind: type[Event], callback: Callback, key: str | None = None) -> None:
        """`callback(event)` for each event of a kind, or of one key of it; the last value of a state comes at once."""
        self._callbacks.setdefault(kind.type, []).append((key, callback))
        self._subscribe(prefix_of(kind))
        self._ask()

    def on_resync(self, callback: Callable[[], None]) -> None:
        self._on_resync.append(callback)

    def close(self) -> None:
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._event_drain.close()
        self._ask_drain.close()

    # --- events

    def _subscribe(self, prefix: str) -> None:
        if prefix not in self._prefixes:
            self._prefixes.add(prefix)
            self._events.setsockopt(zmq.SUBSCRIBE, prefix.encode())

    def _take_event(self) -> bool:
        # Three plain receives cost a tenth of recv_multipart (measured); the broker sends three frames, always.
        receive = self._events.recv
        try:
            first, second, third = receive(zmq.NOBLOCK), receive(zmq.NOBLOCK), receive(zmq.NOBLOCK)
        except zmq.Again:
            return False
        try:
            topic, header = first.decode(), decode_header(second)
            body = _DECODERS[header.type](third)
        except (*UNREADABLE, KeyError):
            self.unreadable += 1
            return True
        self._judge(topic, header, body)
        return True

    def _judge(self, topic: str, header: Header, body: Event) -> None:
        if header.epoch != self._epoch:
            self._new_epoch(header.epoch)
        last = self._last.get(topic)
        if last is not None and header.topic_seq <= last:
            return
        lost = last is not None and header.topic_seq != last + 1
        self._last[topic] = header.topic_seq
        if isinstance(body, Beat):
            self._expect_beat()
            lost = lost or self._behind(body)
        else:
            self._deliver(body)
        if lost:
            self._resync()

    def _behind(self, beat: Beat) -> bool:
        return any(seq > self._last.get(topic, 0) for topic, seq in beat.last.items() if self._wants(topic))

    def _wants(self, topic: str) -> bool:
        return topic.partition("/")[0] in self._callbacks

    def _deliver(self, event: Event) -> None:
        key = event.key()
        for wanted, callback in self._callbacks.get(event.type, ()):
            if wanted is None or wanted == key:
                callback(event)

    # --- resync

    def _new_epoch(self, epoch: int) -> None:
        first = self._epoch == 0
        self._epoch = epoch
        self._last.clear()
        if not first:
            self._resync()

    def _expect_beat(self) -> None:
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._beat_timer = self._loop.call_later(_BEAT_LATE_S, self._beat_is_late)

    def _beat_is_late(self) -> None:
        self._expect_beat()
        self._resync()

    def _resync(self) -> None:
        """One snapshot at a time serves all reasons to ask; the callbacks run when it is there."""
        self.resyncs += 1
        self._ask(resync=True)

    def _ask(self, resync: bool = False) -> None:
        self._asked += 1
        self._resync_due = self._resync_due or resync
        self._loop.call_soon(self._send_ask, self._asked)

    def _send_ask(self, number: int) -> None:
        if number != self._asked or self._answered >= number or self._asks.closed:
            return
        try:
            prefixes = tuple(sorted(self._prefixes - {prefix_of(Beat)}))
            self._asks.send(encode(SnapshotRequest(number, prefixes)), zmq.NOBLOCK)
        except zmq.Again:
            pass
        else:
            self._ask_drain.look()
        self._loop.call_later(_ASK_AGAIN_S, self._send_ask, number)

    def _take_snapshot(self) -> bool:
        try:
            frame = self._asks.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        try:
            snapshot = decode_snapshot(frame)
        except UNREADABLE:
            self.unreadable += 1
            return True
        if snapshot.id == self._asked and snapshot.id > self._answered:
            self._answered = snapshot.id
            self._apply(snapshot.epoch, snapshot.last, snapshot.events)
        return True

    def _apply(self, epoch: int, last: dict[str, int], events: tuple[tuple[bytes, bytes, bytes], ...]) -> None:
        if epoch != self._epoch:
            self._epoch = epoch
            self._last.clear()
        for topic_bytes, header_bytes, body in events:
            try:
                topic, header = topic_bytes.decode(), decode_header(header_bytes)
                event = _DECODERS[header.type](body)
            except (*UNREADABLE, KeyError):
                self.unreadable += 1
                continue
            if header.topic_seq > self._last.get(topic, 0):
                self._last[topic] = header.topic_seq
                self._deliver(event)
        for topic, seq in last.items():
            self._last[topic] = max(seq, self._last.get(topic, 0))
        if self._resync_due:
            self._resync_due = False
            for callback in self._on_resync:
                callback()
