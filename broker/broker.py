"""One loop between all publishers and all subscribers.

Every message's sender is known by the socket's credentials: a topic that its module does not own is dropped and counted.
"""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec
import zmq

from broker.cache import LastValues
from piccolod import clock, log
from piccolod.bus.envelope import (
    HIGH_WATER,
    MAX_MESSAGE_BYTES,
    UNREADABLE,
    VERSION,
    Header,
    Snapshot,
    decode_header,
    decode_snapshot_request,
    encode,
    topic_of,
)
from piccolod.bus.peers import Peers
from piccolod.config import Config
from piccolod.kernel import BY_NAME, may_publish
from piccolod.link import Link, LinkClosed, Message
from piccolod.paths import Paths
from piccolod.protocol.base import Event, Level
from piccolod.protocol.events import EVENTS, Beat, HealthChanged
from piccolod.pulse import FD, Pulse

_BATCH: Final = 256
_BEAT_S: Final = 1.0
_BEAT_SHOWS_S: Final = 10.0
_ORPHANED: Final = 70
_DROP_WARNING_S: Final = 60.0  # how long a dropped message shows in health

_DECODERS: Final = {name: msgspec.msgpack.Decoder(kind).decode for name, kind in EVENTS.items()}


def _owns(sender: str, topic: str, event_type: str, event: Event | None) -> bool:
    """Its type by the table, its topic by its content; and a module judges the health of nobody but itself."""
    if not may_publish(sender, event_type) or not topic.startswith(f"{event_type}/"):
        return False
    if event is None:
        return True
    return topic == topic_of(event) and (not isinstance(event, HealthChanged) or event.component == sender)


class Broker:
    """`run` returns when STOP comes. The epoch names one life of the broker: its start in nanoseconds."""

    def __init__(self, link: Link, start: Message, fds: dict[str, int], config: Config) -> None:
        paths: Paths = config.paths
        self._name, self._inst = str(start["module"]), str(start["inst"])
        self._link = link
        self._pulse = Pulse(fds[FD])
        self._log = log.logger(self._name, self._inst)
        self._epoch = clock.now_ns()
        self._values = LastValues()
        self._senders: dict[str, str] = {}
        self._peers = Peers()
        self._peers.refresh = self._read_link
        self._peers.on_change(lambda _name: self._senders.clear())
        self._peers.learn(start["peers"])
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._in = self._socket(zmq.XSUB, fds["publish"], str(paths.bus_publish))
        self._out = self._socket(zmq.XPUB, fds["subscribe"], str(paths.bus_subscribe))
        self._ask = self._socket(zmq.ROUTER, fds["snapshot"], str(paths.bus_snapshot))
        self._in.send(b"\x01")
        self._seq = 0
        self._stopping = False
        self._dropped = 0
        self._dropped_at = -_DROP_WARNING_S
        heartbeat_ms = config.module(self._name).heartbeat_ms or BY_NAME[self._name].heartbeat_ms
        self._heartbeat_s = heartbeat_ms / 1000

    def _socket(self, kind: int, fd: int, path: str) -> zmq.Socket[bytes]:
        sock = self._context.socket(kind)
        sock.set_hwm(HIGH_WATER)
        sock.setsockopt(zmq.LINGER, 100)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        sock.setsockopt(zmq.USE_FD, fd)
        sock.bind(f"ipc://{path}")
        return sock

    def run(self) -> None:
        poller = zmq.Poller()
        for sock in (self._in, self._out, self._ask, self._link.fileno()):
            poller.register(sock, zmq.POLLIN)
        self._tell({"t": "READY", "applied_rev": 0})
        self._publish(HealthChanged(component=self._name, level=Level.OK))
        beat_at = tick_at = clock.now()
        while not self._stopping:
            now = clock.now()
            if now >= tick_at:
                self._pulse.beat(now, (now - tick_at) * 1000)
                tick_at = now + self._heartbeat_s
            if now >= beat_at:
                self._beat(now)
                beat_at = now + _BEAT_S
            ready = dict(poller.poll(max(0, int((min(beat_at, tick_at) - clock.now()) * 1000) + 1)))
            if self._link.fileno() in ready:
                self._read_link()
            if self._out in ready:
                self._drain_subscriptions()
            if self._in in ready:
                self._forward()
            if self._ask in ready:
                self._answer()

    def close(self) -> None:
        self._context.destroy(linger=100)

    # --- events

    def _forward(self) -> None:
        receive, option = self._in.recv, self._in.getsockopt
        for _ in range(_BATCH):
            try:
                topic = receive(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            header = receive(zmq.NOBLOCK) if option(zmq.RCVMORE) else b""
            body = receive(zmq.NOBLOCK) if option(zmq.RCVMORE) else b""
            while option(zmq.RCVMORE):
                receive(zmq.NOBLOCK)
                header = b""  # more frames than an event has: unreadable
            self._take(str(topic.get("Peer-Address")), topic.bytes, header, body)

    def _take(self, address: str, topic_bytes: bytes, header_bytes: bytes, body: bytes) -> None:
        sender = self._senders.get(address)
        if sender is None:
            sender = self._peers.sender(address)[0]
            if sender is None:
                self._drop(None, address, "an event")
                return
            self._senders[address] = sender
        try:
            topic, header = topic_bytes.decode(), decode_header(header_bytes)
            kind = EVENTS[header.type]
            # What is kept for late joiners is read first: one bad body would spoil every snapshot.
            event = _DECODERS[header.type](body) if kind.retained else None
        except (*UNREADABLE, KeyError):
            self._drop(sender, address, "something unreadable")
            return
        if sender != header.src or not _owns(sender, topic, header.type, event):
            self._drop(sender, address, topic[:100])
            return
        self._send(sender, topic, header, body, kind)

    def _send(self, sender: str, topic: str, header: Header, body: bytes, kind: type[Event]) -> None:
        seq = self._values.next_seq(sender, topic, clock.now())
        stamped = encode(
            Header(
                VERSION, header.type, header.src, header.inst, header.seq, self._epoch, seq,
                header.mono_ns, header.wall_ms, header.trace,
            )
        )  # fmt: skip
        frames = (topic.encode(), stamped, body)
        if kind.retained:
            self._values.keep(topic, frames)
        send = self._out.send
        send(frames[0], zmq.SNDMORE | zmq.NOBLOCK)
        send(frames[1], zmq.SNDMORE | zmq.NOBLOCK)
        send(body, zmq.NOBLOCK)

    def _publish(self, event: Event) -> None:
        self._seq += 1
        header = Header(VERSION, event.type, self._name, self._inst, self._seq, 0, 0, clock.now_ns(), clock.wall_ms(), "")
        self._send(self._name, topic_of(event), header, encode(event), type(event))

    def _beat(self, now: float) -> None:
        self._publish(Beat(last=self._values.changed_since(now - _BEAT_SHOWS_S)))
        if self._dropped and now - self._dropped_at > _DROP_WARNING_S:
            self._dropped = 0
            self._publish(HealthChanged(component=self._name, level=Level.OK))

    def _drop(self, sender: str | None, address: str, what: str) -> None:
        self._dropped += 1
        self._dropped_at = clock.now()
        if self._dropped == 1:
            self._log.warning("dropped an event that its sender does not own", sender=sender, peer=address, type=what)
            reason = f"dropped {what} of {sender or address}, which does not own it"
            self._publish(HealthChanged(component=self._name, level=Level.WARN, reason=reason))

    # --- readers

    def _drain_subscriptions(self) -> None:
        """XPUB shows who subscribes to what. Upstream always gets everything: the cache needs it."""
        while True:
            try:
                self._out.recv(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _answer(self) -> None:
        for _ in range(_BATCH):
            try:
                frames = self._ask.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                request = decode_snapshot_request(frames[1])
            except (*UNREADABLE, IndexError):
                continue
            last, events = self._values.snapshot(request.prefixes)
            try:
                self._ask.send_multipart([frames[0], encode(Snapshot(request.id, self._epoch, last, events))], zmq.NOBLOCK)
            except zmq.ZMQError:
                continue

    # --- the supervisor

    def _tell(self, message: Message) -> None:
        try:
            self._link.send(message)
        except LinkClosed:
            os._exit(_ORPHANED)

    def _read_link(self) -> None:
        try:
            while (got := self._link.receive()) is not None:
                message, fds = got
                for fd in fds:
                    os.close(fd)
                self._obey(message)
        except LinkClosed:
            os._exit(_ORPHANED)

    def _obey(self, message: Message) -> None:
        if message["t"] == "PEERS":
            self._peers.learn(message["peers"])
        elif message["t"] == "EVENT":
            self._publish_for_supervisor(message)
        elif message["t"] == "STOP":
            self._tell({"t": "STOPPING"})
            self._stopping = True

    def _publish_for_supervisor(self, message: dict[str, Any]) -> None:
        kind = EVENTS.get(str(message.get("type")))
        if kind is None:
            return
        try:
            self._publish(msgspec.convert(message.get("body"), kind))
        except msgspec.ValidationError as error:
            self._log.error("got an event from the supervisor that does not fit", type=message.get("type"), error=str(error))
