"""From a client to its container: the connect, what is sent ahead of the client's own bytes, and what a failure is answered."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Final

from services.router.flow import Leg, Stage
from services.router.http import answer
from services.router.proxy_protocol import header_v2
from services.router.pump import Pump
from services.router.route import ClientIp, Mode

OUT: Final = select.EPOLLOUT
READABLE: Final = ~select.EPOLLOUT
# After these a short read is not the last one: a FIN follows, or an urgent mark stood in the way.
MORE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
_NEW: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

_OPEN: Final = Stage.OPEN
_CONNECTING: Final = Stage.CONNECTING
_HELD: Final = Stage.HELD
_LOCAL: Final = Mode.LOCAL
_PROXY_V2: Final = ClientIp.PROXY_V2


class Dialer(Pump):
    def _dial(self, client: Leg) -> None:
        port = client.port
        target = port.target
        if target is None or port.mode is not _LOCAL:
            self._wait(client)
            return
        try:
            sock = socket.SocketType(socket.AF_INET6 if ":" in target.address else socket.AF_INET, _NEW)
        except OSError as error:
            self._give_up(client, f"this node cannot connect to the app: {error.strerror}")
            return
        # No keepalive: the peer is on this machine, its kernel says when it ends.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Only to what is directly connected: the address of a container that is gone must not lead out of this machine.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
        failure = sock.connect_ex((target.address, target.port))
        if failure not in (0, errno.EINPROGRESS):
            sock.close()
            self._give_up(client, f"the app does not accept connections: {os.strerror(failure)}")
            return
        backend = Leg(sock, sock.fileno(), port, _CONNECTING, self._now)
        client.stage = _OPEN
        client.peer, backend.peer = backend, client
        early, client.early = self._preamble(client) + client.early, b""
        if early:
            self._keep(backend, memoryview(early))
        self._connecting.add(backend, self._now + self.limits.connect_s)
        if not self._watch(backend):
            self._dial_failed(backend, "this node is out of memory")

    def _wait(self, client: Leg) -> None:
        client.stage = _HELD
        client.port.held.add(client, self._now + client.port.listener.hold_s)

    def _preamble(self, client: Leg) -> bytes:
        """Not for a client that comes through a tunnel: the node that it came to has seen to that."""
        if client.port.listener.client_ip is not _PROXY_V2 or client.address is None or client.tunnel is not None:
            return b""
        return header_v2(client.address, client.sock.getsockname())

    def _connected(self, backend: Leg, mask: int) -> None:
        if mask & BROKEN and (failure := backend.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._dial_failed(backend, os.strerror(failure))
            return
        if not mask & OUT:
            return
        self._connecting.discard(backend)
        backend.stage = _OPEN
        client = backend.peer
        if client is not None and client.tunnel is not None and not self._tell_served(client):
            return
        if backend.out is None:
            if backend.fin:
                self._finish(backend)
        elif self._flush(backend) and backend.peer is not None:
            # While something waited for the backend, its client was not read.
            self._pump(backend.peer, True)
        if mask & READABLE:
            self._pump(backend, mask & MORE)

    def _tell_served(self, client: Leg) -> bool:
        """Its other node is told that bytes may follow. False: it has gone."""
        raise NotImplementedError

    def _dial_failed(self, backend: Leg, why: str) -> None:
        client = backend.peer
        self._drop(backend)
        if client is not None:
            client.peer = None
            self._give_up(client, f"the app does not accept connections: {why}")

    def _give_up(self, client: Leg, reason: str) -> None:
        """Nobody can serve this client: 503 where HTTP is spoken (its request may be on the way), a reset elsewhere."""
        client.port.refused += 1
        if client.port.speaks_http:
            self._introduction.farewell(client, answer(503, reason, retry_after_s=1), self._now)
        else:
            self._reset(client)
