"""One connection to the control socket. Does something only when it is given a turn, and then one thing."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable
from typing import Any, Final

from piccolod import clock
from piccolod.errors import TooLarge
from piccolod.supervisor.loop import Loop

LINE_BYTES: Final = 4096
OUT_BYTES: Final = 1 << 20


class Client:
    """Watched while it waits for its peer, and not while it waits for its turn: a flood stays in the peer's own socket."""

    def __init__(
        self,
        loop: Loop,
        peer: socket.socket,
        pid: int,
        answer: Callable[[bytes], dict[str, Any]],
        wants_turn: Callable[[Client], None],
    ) -> None:
        peer.setblocking(False)
        self.pid = pid
        self.moved_at = clock.now()
        self._loop = loop
        self._peer = peer
        self._answer = answer
        self._wants_turn = wants_turn
        self._in = b""
        self._out = memoryview(b"")
        self._last = False  # it is cut off after this answer
        self._wait(select.EPOLLIN)

    @property
    def unread_bytes(self) -> int:
        """Of an answer that its peer has not taken."""
        return len(self._out)

    @property
    def closed(self) -> bool:
        return self._peer.fileno() < 0

    def turn(self) -> None:
        """Sends what it can of an answer; or reads once, and answers one request if one is whole."""
        try:
            if self._out:
                self._flush()
            elif self._asked() or self._read():
                self._serve()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
        except BaseException:
            self.close()
            raise
        if not self.closed:
            self._go_on()

    def close(self) -> None:
        if not self.closed:
            self._loop.forget(self._peer.fileno())
            self._peer.close()
            self._out = memoryview(b"")

    def _go_on(self) -> None:
        if self._out:
            self._wait(select.EPOLLOUT)
        elif self._last:
            self.close()
        elif self._asked():
            self._wants_turn(self)
        else:
            self._wait(select.EPOLLIN)

    def _wait(self, events: int) -> None:
        self._loop.watch(self._peer.fileno(), self._ready, events)

    def _ready(self, _events: int) -> None:
        self._loop.forget(self._peer.fileno())
        self._wants_turn(self)

    def _asked(self) -> bool:
        """Whether there is something to answer: a request, or what is too long to be one."""
        return b"\n" in self._in or len(self._in) > LINE_BYTES

    def _read(self) -> bool:
        got = self._peer.recv(LINE_BYTES)
        self.moved_at = clock.now()
        self._last = not got
        self._in += got
        return self._asked()

    def _serve(self) -> None:
        line, end, rest = self._in.partition(b"\n")
        if end:
            self._in = rest
            answer = self._answer(line)
        else:
            self._last = True
            answer = {"id": None, "ok": False, "error": TooLarge(f"a line has at most {LINE_BYTES} bytes").to_wire()}
        out = _encoded(answer)
        if len(out) > OUT_BYTES:
            out = _encoded({"id": answer["id"], "ok": False, "error": TooLarge("ask for less").to_wire()})
        self._out = memoryview(out)
        self._flush()

    def _flush(self) -> None:
        self._out = self._out[self._peer.send(self._out, socket.MSG_NOSIGNAL) :]
        self.moved_at = clock.now()


def _encoded(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"
