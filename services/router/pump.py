"""The hot path: bytes from one leg to its peer, with no work per byte.

One `recv_into` and one `send` an event, no allocation that outlives it and no `epoll_ctl`. A leg whose peer cannot take more
is not read, so that a slow reader costs one buffer and the sender feels TCP's own back-pressure.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Final

from services.router.flow import Leg, Stage
from services.router.http import Refused
from services.router.legs import Legs
from services.router.limits import Limits

_CONNECTING: Final = Stage.CONNECTING
_NOTHING: Final = memoryview(b"")
_ROUNDS: Final = range(4)  # buffers that one leg moves before the next leg has its turn


class Pump(Legs):
    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._again: deque[Leg] = deque()  # had more to read when their turn ended

    def _dial_failed(self, backend: Leg, why: str) -> None:
        raise NotImplementedError

    def _pump(self, leg: Leg, more: int) -> None:
        """Moves what `leg` has sent to its peer. `more`: do not take a short read for the end of what is there."""
        peer = leg.peer
        if peer is None or leg.eof or peer.out is not None:
            return
        buffer = self._cup
        for _ in _ROUNDS:
            try:
                count = leg.sock.recv_into(buffer)
                if not count:
                    leg.eof = True
                    self._finish(peer)
                    return
            except BlockingIOError:
                return
            except OSError as error:
                self._break(leg, error)
                return
            leg.moved += count
            chunk = buffer[:count]
            if leg.body is not None:
                try:
                    # What follows the request is thrown away: the container answers one and closes.
                    chunk = chunk[: leg.body.take(chunk)]
                except Refused:
                    self._reset(leg)
                    return
            try:
                sent = peer.sock.send(chunk)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._break(peer, error)
                return
            if sent < len(chunk):
                self._keep(peer, chunk[sent:])
                return
            if count < len(buffer) and not more and (leg.tunnel is None or not leg.tunnel.more):
                return
        self._again.append(leg)

    def _keep(self, leg: Leg, rest: memoryview) -> None:
        """What `leg` could not take; a tunnel has it already, encrypted."""
        leg.out = memoryview(bytes(rest)) if leg.tunnel is None else leg.tunnel.take_rest()
        self._buffer_more(len(leg.out))

    def _flush(self, leg: Leg) -> bool:
        """Writes what waits for `leg`. True when nothing does any more."""
        out = leg.out
        if out is None:
            return True
        try:
            sent = leg.sock.send(out) if leg.tunnel is None else leg.tunnel.sock.send(out)
        except BlockingIOError:
            return False
        except OSError as error:
            self._break(leg, error)
            return False
        self._buffer_more(-sent)
        if sent < len(out):
            leg.out = out[sent:]
            return False
        leg.out = None
        if leg.fin:
            self._finish(leg)
        return True

    def _finish(self, leg: Leg) -> None:
        """`leg` gets no more bytes: its FIN follows the last of them. The other direction goes on."""
        leg.fin = True
        peer = leg.peer
        if leg.stage is _CONNECTING or leg.out is not None:
            return
        try:
            if leg.tunnel is not None and not leg.tunnel.end():
                self._keep(leg, _NOTHING)  # when it is written, this is tried again
            elif leg.eof and peer is not None and peer.out is None:
                self._end(leg)
            elif leg.tunnel is None:
                leg.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._break(leg, error)

    def _break(self, leg: Leg, error: OSError) -> None:
        """`leg` failed: its peer sees what it would have seen from it, a reset."""
        if leg.stage is _CONNECTING:
            self._dial_failed(leg, error.strerror or "it failed")
        else:
            self._reset(leg)
