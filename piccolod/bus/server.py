"""Receives commands: checks who asks, what, and whether it is still wanted; runs the handler; answers."""

from __future__ import annotations

import asyncio
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec
import zmq

from piccolod import clock
from piccolod.bus.caller import Caller
from piccolod.bus.drain import Drain
from piccolod.bus.envelope import (
    HIGH_WATER,
    MAX_MESSAGE_BYTES,
    NULL,
    UNREADABLE,
    CommandFrame,
    ReplyFrame,
    decode_command,
    encode,
)
from piccolod.bus.peers import Peers
from piccolod.errors import DeadlineExceeded, Failed, Forbidden, Invalid, NotFound, PiccoloError, TermOver
from piccolod.kernel import may_call
from piccolod.protocol.base import Request

Handler = Callable[[Any, Caller], Awaitable[Any]]

_REMEMBERED: Final = 4096  # results kept for retries with the same idempotency key
_REMEMBERED_S: Final = 600.0


class CommandServer:
    """One ROUTER on the module's own socket. A command that is late, forged or not allowed is not run.

    A retry with the same `idem` joins the first run or gets its result, within this life of the module and 10 minutes;
    what must hold over a crash is committed with the control store's rev.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        fd: int,
        path: str,
        inst: str,
        peers: Peers,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        report: Callable[[str, str], None],
    ) -> None:
        self._sock = context.socket(zmq.ROUTER)
        self._sock.set_hwm(HIGH_WATER)
        self._sock.setsockopt(zmq.LINGER, 200)
        self._sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._sock.setsockopt(zmq.USE_FD, fd)
        self._sock.bind(f"ipc://{path}")
        self._inst, self._peers, self._spawn, self._report = inst, peers, spawn, report
        self._handlers: dict[str, tuple[type[Any], Handler]] = {}
        self._results: OrderedDict[tuple[str, str, str], tuple[float, asyncio.Future[ReplyFrame]]] = OrderedDict()
        self._drain: Drain | None = None

    def serve(self, kind: type[Request[Any]], handler: Handler) -> None:
        self._handlers[kind.command] = (kind, handler)

    def open(self) -> None:
        """Commands that came earlier waited in the socket until every handler was there."""
        self._drain = Drain(self._sock, self._take)

    def close(self) -> None:
        if self._drain is None:
            self._sock.close(linger=0)
        else:
            self._drain.close()

    def _take(self) -> bool:
        try:
            identity = self._sock.recv(zmq.NOBLOCK)
            message = self._sock.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        while self._sock.getsockopt(zmq.RCVMORE):
            self._sock.recv(zmq.NOBLOCK)
        try:
            frame = decode_command(message.bytes)
        except UNREADABLE:
            return True
        module, pid = self._peers.sender(str(message.get("Peer-Address")))
        if module is None:
            error = Forbidden(f"pid {pid} is no module of this node")
            self._send(identity, self._refusal(frame, error))
            return True
        caller = Caller(module, pid, frame.idem, frame.trace, frame.deadline_ns / 1e9)
        self._spawn(self._answer(identity, frame, caller))
        return True

    async def _answer(self, identity: bytes, frame: CommandFrame, caller: Caller) -> None:
        if not frame.idem:
            self._send(identity, await self._run(frame, caller))
            return
        key = (caller.module, frame.cmd, frame.idem)
        known = self._results.get(key)
        if known is None:
            result: asyncio.Future[ReplyFrame] = asyncio.get_running_loop().create_future()
            self._remember(key, result)
            result.set_result(await self._run(frame, caller))
            if result.result().error is not None:
                self._results.pop(key, None)  # a refusal is no result: the retry may succeed
        else:
            result = known[1]
        reply = await asyncio.shield(result)
        self._send(identity, ReplyFrame(frame.id, reply.inst, reply.result, reply.error))

    def _remember(self, key: tuple[str, str, str], result: asyncio.Future[ReplyFrame]) -> None:
        now = clock.now()
        self._results[key] = (now, result)
        while self._results:
            oldest, (at, _) = next(iter(self._results.items()))
            if len(self._results) <= _REMEMBERED and at > now - _REMEMBERED_S:
                break
            del self._results[oldest]

    async def _run(self, frame: CommandFrame, caller: Caller) -> ReplyFrame:
        try:
            kind, handler = self._admit(frame, caller)
            try:
                request = msgspec.msgpack.decode(frame.args, type=kind)
            except UNREADABLE as error:
                raise Invalid(f"{frame.cmd}: {error}") from None
            result = msgspec.Raw(encode(await handler(request, caller)))
        except PiccoloError as error:
            return self._refusal(frame, error)
        except TermOver as error:
            return self._refusal(frame, _as_refusal(error))
        except Exception as error:
            # One command that meets our bug must not take down the module and every other command with it.
            self._report(frame.cmd, traceback.format_exc())
            return self._refusal(frame, Failed(f"{frame.cmd} failed: {type(error).__name__}", hint="see the module's log"))
        return ReplyFrame(frame.id, self._inst, result, None)

    def _admit(self, frame: CommandFrame, caller: Caller) -> tuple[type[Any], Handler]:
        if not may_call(caller.module, frame.cmd):
            raise Forbidden(f"{caller.module} may not call {frame.cmd}")
        if frame.deadline_ns < clock.now_ns():
            raise DeadlineExceeded(f"{frame.cmd} arrived after its deadline and was not run", hint="try again")
        known = self._handlers.get(frame.cmd)
        if known is None:
            raise NotFound(f"there is no command {frame.cmd}")
        return known

    def _refusal(self, frame: CommandFrame, error: PiccoloError) -> ReplyFrame:
        return ReplyFrame(frame.id, self._inst, NULL, error.to_wire())

    def _send(self, identity: bytes, reply: ReplyFrame) -> None:
        try:
            self._sock.send_multipart([identity, encode(reply)], zmq.NOBLOCK)
        except zmq.ZMQError:
            return  # the caller is gone, or does not read: its deadline tells it
        if self._drain is not None:
            self._drain.look()


def _as_refusal(error: TermOver) -> PiccoloError:
    from piccolod.errors import NotLeader

    return NotLeader(f"this node does not lead {error.resource} now: {error.reason}")
