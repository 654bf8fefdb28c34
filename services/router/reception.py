"""Where connections come in: listening sockets shared with the other workers, and what happens when no more can be taken."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final

from services.router.flow import Door, Port, Stream, Welcome
from services.router.route import Mode

# Shared sockets wake one worker, or few, not all; SO_REUSEPORT would hash connections to dead ones.
_DOOR: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE
_ACCEPTS: Final = range(32)  # then others have their turn
_PAUSE_S: Final = 0.1
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER, zero seconds: close sends RST
_NEW: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


class Reception:
    """`judge` says what a port may do, once for each batch; `welcome` gets each new connection with that verdict."""

    def __init__(self, epoll: select.epoll, judge: Callable[[Port], Mode], welcome: Welcome) -> None:
        self._epoll = epoll
        self.judge = judge
        self._welcome = welcome
        self._doors: dict[int, Door] = {}
        self._paused: set[Door] = set()
        # Given up for a moment to accept and refuse a connection when the process is out of descriptors.
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def paused(self) -> bool:
        return bool(self._paused)

    def door(self, fd: int) -> Door | None:
        return self._doors.get(fd)

    def open(self, port: Port, sock: socket.socket, welcome: Welcome | None = None) -> Door:
        """Accepts for `port` from `sock`, which must listen already. `welcome`: of this door alone."""
        sock.setblocking(False)
        tune(sock)
        door = Door(port, sock, welcome or self._welcome)
        self._epoll.register(door.fd, _DOOR)
        self._doors[door.fd] = door
        return door

    def shut(self, door: Door) -> None:
        if self._doors.pop(door.fd, None) is None:
            return
        if door not in self._paused:
            self._epoll.unregister(door.fd)
        self._paused.discard(door)
        door.sock.close()

    def close(self) -> None:
        for door in list(self._doors.values()):
            self.shut(door)
        os.close(self._spare)

    def accept(self, door: Door, now: float) -> None:
        """Takes what waits at a door, at most one batch."""
        port = door.port
        mode = self.judge(port)
        family = door.sock.family
        for _ in _ACCEPTS:
            try:
                # `accept` of the public class costs a second object and three calls for each connection.
                fd, address = door.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                self._out_of(door, error, now)
                return
            sock = socket.SocketType(family, _NEW, 0, fd)
            sock.setblocking(False)
            door.welcome(port, mode, sock, fd, address)

    def reopen(self, now: float) -> None:
        """Paused doors whose time has come."""
        for door in [door for door in self._paused if now >= door.opens_at]:
            self._paused.discard(door)
            self._epoll.register(door.fd, _DOOR)

    def _out_of(self, door: Door, error: OSError, now: float) -> None:
        """Out of descriptors or memory. Without descriptors whoever waits is refused now rather than left hanging."""
        door.port.refused += 1
        if error.errno in (errno.EMFILE, errno.ENFILE):
            os.close(self._spare)
            try:
                fd, _ = door.sock._accept()  # type: ignore[attr-defined]
            except OSError:
                pass
            else:
                refuse(socket.SocketType(door.sock.family, _NEW, 0, fd))
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            return
        # The event would come again at once, for ever.
        self._epoll.unregister(door.fd)
        self._paused.add(door)
        door.opens_at = now + _PAUSE_S


def refuse(sock: socket.SocketType) -> None:
    """Closes with a reset."""
    reset_on_close(sock)
    sock.close()


def reset_on_close(sock: Stream) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass


def tune(sock: socket.SocketType) -> None:
    """No waiting for a fuller segment; a dead peer is found after two minutes. Accepted sockets inherit these from the
    listening one: no system call per connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
