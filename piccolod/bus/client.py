"""Sends commands: one DEALER a module, each call with a deadline and an answer or an error."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import zmq

from piccolod import clock
from piccolod.bus.drain import Drain
from piccolod.bus.envelope import (
    HIGH_WATER,
    MAX_MESSAGE_BYTES,
    RECONNECT_MS,
    UNREADABLE,
    VERSION,
    CommandFrame,
    ReplyFrame,
    decode_reply,
    encode,
)
from piccolod.bus.peers import Peers
from piccolod.errors import Busy, DeadlineExceeded, PeerRestarted, from_wire
from piccolod.paths import Paths
from piccolod.protocol.base import Reply, Request


class CommandClient:
    """A call returns the reply, or raises the PiccoloError that the other side raised.

    DeadlineExceeded and PeerRestarted mean that the outcome is unknown: only `idem` makes a retry safe.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], paths: Paths, src: str, inst: str, peers: Peers) -> None:
        self._context, self._paths, self._src, self._inst = context, paths, src, inst
        self._peers = peers
        self._targets: dict[str, _Target] = {}
        self._ids = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        peers.on_change(self._peer_changed)

    async def call(
        self, request: Request[Reply], *, timeout_s: float, idem: str = "", trace: str = "", target: str | None = None
    ) -> Reply:
        name = target or request.command.partition(".")[0]
        to = self._targets.get(name)
        if to is None:
            to = self._targets[name] = _Target(self._context, self._paths, name, self._peers.instance(name))
        number = next(self._ids)
        deadline_ns = clock.now_ns() + int(timeout_s * 1e9)
        args = msgspec.Raw(encode(request))
        frame = CommandFrame(VERSION, number, request.command, self._src, self._inst, deadline_ns, idem, trace, args)
        answer: asyncio.Future[ReplyFrame] = self._loop.create_future()
        to.send(number, encode(frame), answer)
        timer = self._loop.call_later(timeout_s, _expire, answer, request.command, name, timeout_s)
        try:
            reply = await answer
        finally:
            timer.cancel()
            to.waiting.pop(number, None)
        if reply.error is not None:
            raise from_wire(reply.error)
        result: Reply = msgspec.msgpack.decode(reply.result, type=request.reply)
        return result

    def close(self) -> None:
        for target in self._targets.values():
            target.close()
        self._targets.clear()

    def _peer_changed(self, name: str) -> None:
        """The process behind a name is another one: calls to the old one will never be answered.

        A fresh socket drops what was queued for the dead, so that no call runs after its caller was told of the restart.
        """
        target = self._targets.get(name)
        if target is None or target.instance in ("", self._peers.instance(name)):
            if target is not None:
                target.instance = self._peers.instance(name)
            return
        del self._targets[name]
        target.fail(PeerRestarted(f"{name} restarted with the call in flight", hint="its outcome is unknown; try again"))
        target.close()


class _Target:
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], paths: Paths, name: str, instance: str) -> None:
        self._sock = context.socket(zmq.DEALER)
        self._sock.set_hwm(HIGH_WATER)
        self._sock.setsockopt(zmq.LINGER, 0)
        self._sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._sock.connect(f"ipc://{paths.command_socket(name)}")
        self._name = name
        self.instance = instance  # the life that is asked; empty: whichever comes up
        self.waiting: dict[int, asyncio.Future[ReplyFrame]] = {}
        self._drain = Drain(self._sock, self._take)

    def send(self, number: int, frame: bytes, answer: asyncio.Future[ReplyFrame]) -> None:
        try:
            self._sock.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            raise Busy(f"{self._name} has {HIGH_WATER} commands waiting", hint="try again in a moment") from None
        self.waiting[number] = answer
        self._drain.look()

    def _take(self) -> bool:
        try:
            frame = self._sock.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        try:
            reply = decode_reply(frame)
        except UNREADABLE:
            return True
        self.instance = self.instance or reply.inst
        answer = self.waiting.pop(reply.id, None)
        if answer is not None and not answer.done():
            answer.set_result(reply)
        return True

    def fail(self, error: Exception) -> None:
        for answer in self.waiting.values():
            if not answer.done():
                answer.set_exception(error)
        self.waiting.clear()

    def close(self) -> None:
        self._drain.close()


def _expire(answer: asyncio.Future[Any], command: str, name: str, timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(
            DeadlineExceeded(f"{name} did not answer {command} within {timeout_s:g} s", hint="its outcome is unknown")
        )
