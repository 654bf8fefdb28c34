"""The relay: bytes between clients and containers, on one epoll, with no work per byte.

Every socket is registered once, edge-triggered, for both directions: the hot path is one `recv_into` and one `send` per
event, no allocation that outlives it and no `epoll_ctl`. A leg whose peer cannot take more is not read, so that a slow
reader costs one buffer and the sender feels TCP's own back-pressure. Readiness is only a hint: what is true is what
`recv` and `send` say, so a stale or repeated event does no harm.

Who may be forwarded is not decided here: `judge` is asked for each batch of new connections, and again for every port
before the first byte after a pause (a worker that was frozen must not go on where it was).
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from piccolod import clock
from services.router.deadlines import Deadlines
from services.router.flow import Door, Leg, Port, Stage
from services.router.http import Refused, answer
from services.router.introduction import Introduction
from services.router.limits import Admission, Limits
from services.router.proxy_protocol import header_v2
from services.router.reception import Address, Reception, refuse, reset_on_close
from services.router.route import ClientIp, Mode

_LEG: Final = select.EPOLLET | select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI
_OUT: Final = select.EPOLLOUT
_READABLE: Final = ~select.EPOLLOUT
# After these a short read is not the last one: a FIN follows, or an urgent mark stood in the way.
_MORE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
_BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
_NEW: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

# Looking up a member in its enum costs 0.1 us, ten times for a new connection.
_OPEN: Final = Stage.OPEN
_CONNECTING: Final = Stage.CONNECTING
_HELD: Final = Stage.HELD
_HEAD: Final = Stage.HEAD
_PARTING: Final = Stage.PARTING
_CLOSED: Final = Stage.CLOSED
_LOCAL: Final = Mode.LOCAL
_HOLD: Final = Mode.HOLD
_REFUSED: Final = Mode.CLOSED
_PROXY_V2: Final = ClientIp.PROXY_V2

# Measured against iperf3 and wrk on 2 cores: 64 KiB loses 10 % of bulk, 256 KiB gains nothing more.
BUFFER_BYTES: Final = 128 * 1024
_SIP_BYTES: Final = 4 * 1024
_EVENTS: Final = 64
_ROUNDS: Final = range(4)  # buffers that one leg moves before the next leg has its turn
_SLICE_S: Final = 0.01  # then the module's loop has its turn: beats, commands
_LINGER_S: Final = 0.002  # waiting here is cheaper than a turn of the module's loop when traffic flows
_TICK_S: Final = 0.05
JUDGED_EVERY_S: Final = 0.1


class Relay:
    """All flows of one worker. Single-threaded, on the module's event loop."""

    def __init__(self, limits: Limits, judge: Callable[[Port], Mode]) -> None:
        self.limits = limits
        self.admission = Admission(limits)
        self._epoll = select.epoll()
        self._reception = Reception(self._epoll, judge, self._welcome)
        self._legs: dict[int, Leg] = {}
        self._ports: set[Port] = set()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._sip = self._buffer[:_SIP_BYTES]
        self._introduction = Introduction(limits, self._buffer, self._dial, self._end, self._reset)
        self._cup = self._buffer  # what one read may take: all of it, until too much waits for slow readers
        self._buffered_bytes = 0
        self._again: deque[Leg] = deque()  # had more to read when their turn ended
        self._closing: list[socket.SocketType] = []
        self._in_turn = False
        self._resuming = False
        self._connecting: Deadlines[Leg] = Deadlines()
        self._now = clock.now()
        self._judged_at = self._now
        self._swept_at = self._now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._failure: asyncio.Future[None] | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Runs on `loop` from now on: readiness through the epoll descriptor, time by a timer while there are flows.

        The future ends with the exception that the relay died of: a loop would only log it and call again.
        """
        self._loop = loop
        self._failure = loop.create_future()
        loop.add_reader(self._epoll.fileno(), self._guarded, self.drain)
        return self._failure

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            if self._failure is None or self._failure.done():
                raise
            self._detach()
            self._failure.set_exception(error)

    def _detach(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        """An idle worker sleeps: the timer runs only while there is something that time can change."""
        if self._timer is None and self._loop is not None and (self._legs or self._reception.paused):
            self._timer = self._loop.call_later(_TICK_S, self._guarded, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.tick()
        self._arm()

    @property
    def buffered_bytes(self) -> int:
        return self._buffered_bytes

    # --- ports

    def open(self, port: Port, sock: socket.socket) -> Door:
        """Accepts for `port` from `sock`, which is shared with other workers and must listen already."""
        self._ports.add(port)
        return self._reception.open(port, sock)

    def shut(self, door: Door) -> None:
        """Accepts no more. The flows of its port run on until `cut`."""
        self._reception.shut(door)

    def cut(self, port: Port) -> None:
        """Resets every flow of `port`, at once. Held connections stay, and those that have our answer and nothing else."""
        port.drain_at = None
        for client in list(port.clients):
            if client.stage is not _HELD and client.stage is not _PARTING:
                self._reset(client)
        self._bury()

    def dismiss(self, port: Port) -> None:
        """There will be no leader for those who wait."""
        self._now = clock.now()
        for client in port.held.dismiss():
            self._give_up(client, "this app is not available here")
        self._bury()

    def forget(self, port: Port) -> None:
        """Ends everything of a port whose doors are shut."""
        self.dismiss(port)
        self.cut(port)
        self._ports.discard(port)

    def close(self) -> None:
        """Resets every flow and closes every door."""
        self._detach()
        self._reception.close()
        for leg in list(self._legs.values()):
            self._reset(leg)
        self._bury()
        self._epoll.close()

    # --- turns

    def drain(self) -> None:
        """Moves what is there to move, for one slice. Called when the epoll descriptor is readable."""
        self._now = clock.now()
        until = self._now + _SLICE_S
        while self._turn(0.0 if self._again else _LINGER_S) or self._again:
            if self._now >= until:
                break
        self._resume()
        if self._timer is None:
            self._arm()

    def _resume(self) -> None:
        """Who had more to read when the slice ended will cause no event: another slice follows by itself."""
        if self._again and not self._resuming and self._loop is not None:
            self._resuming = True
            self._loop.call_soon(self._guarded, self._on_resume)

    def _on_resume(self) -> None:
        self._resuming = False
        if not self._epoll.closed:
            self.drain()

    def rejudge(self) -> None:
        """Asks again for every port that has connections."""
        self._judged_at = self._now
        for port in list(self._ports):
            if port.clients:
                self._reception.judge(port)

    def _turn(self, wait_s: float) -> bool:
        """One batch of events. False: there was none."""
        events = self._epoll.poll(wait_s, _EVENTS)
        self._now = clock.now()
        self._in_turn = True
        try:
            if self._now - self._judged_at >= JUDGED_EVERY_S:
                self.rejudge()
            self._dispatch(events)
        finally:
            self._in_turn = False
            if self._closing:
                self._bury()
        return bool(events)

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        legs, now = self._legs, self._now
        doors: list[Door] = []
        for fd, mask in events:
            leg = legs.get(fd)
            if leg is None:
                door = self._reception.door(fd)
                if door is not None:
                    doors.append(door)
                continue
            leg.active_at = now
            if leg.stage:
                self._early(leg, mask)
                continue
            if leg.out is not None and mask & _OUT and self._flush(leg) and leg.peer is not None:
                self._pump(leg.peer, True)
            if mask & _READABLE:
                self._pump(leg, mask & _MORE)
        for _ in range(len(self._again)):
            self._pump(self._again.popleft(), True)
        # Last, so that running flows come first and no new descriptor meets an old event.
        for door in doors:
            self._reception.accept(door, now)

    def _bury(self) -> None:
        """Closes what ended, but not within a batch of events: a descriptor that is used again within one would get
        the events of its predecessor."""
        if self._in_turn:
            return
        closing, self._closing = self._closing, []
        for sock in closing:
            sock.close()

    # --- the hot path

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
            if count < len(buffer) and not more:
                return
        self._again.append(leg)

    def _keep(self, leg: Leg, rest: memoryview) -> None:
        leg.out = memoryview(bytes(rest))
        self._buffer_more(len(rest))

    def _buffer_more(self, count: int) -> None:
        self._buffered_bytes += count
        self._cup = self._buffer if self._buffered_bytes < self.limits.buffered_bytes else self._sip

    def _flush(self, leg: Leg) -> bool:
        """Writes what waits for `leg`. True when nothing does any more."""
        out = leg.out
        if out is None:
            return True
        try:
            sent = leg.sock.send(out)
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
        if leg.eof and peer is not None and peer.out is None:
            self._end(leg)
            return
        try:
            leg.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._break(leg, error)

    def _break(self, leg: Leg, error: OSError) -> None:
        """`leg` failed: its peer sees what it would have seen from it, a reset."""
        if leg.stage is _CONNECTING:
            self._dial_failed(leg, error.strerror or "it failed")
        else:
            self._reset(leg)

    # --- new connections

    def _welcome(self, port: Port, mode: Mode, sock: socket.SocketType, fd: int, address: Address) -> None:
        if mode is _REFUSED or not self.admission.enter(address[0]):
            port.refused += 1
            refuse(sock)
            return
        port.total += 1
        client = Leg(sock, fd, port, _HELD, self._now)
        client.address = address
        port.clients.add(client)
        if not self._watch(client):
            self._reset(client)
        elif mode is _HOLD:
            port.held.add(client, self._now + port.listener.hold_s)
        else:
            self._proceed(client)

    def release(self, port: Port) -> None:
        """Lets the next ones that were held go to the container."""
        self._now = clock.now()
        for client in port.held.release():
            client.active_at = self._now
            self._proceed(client)
            # What it sent while it was held will cause no further event.
            self._again.append(client)
        self._resume()

    def _proceed(self, client: Leg) -> None:
        """A client that may go to the container: read its head first, or dial."""
        if client.port.reads_head and not client.early:
            self._introduction.begin(client, self._now)
        else:
            self._dial(client)

    def _dial(self, client: Leg) -> None:
        port = client.port
        target = port.target
        if target is None or port.mode is not _LOCAL:
            client.stage = _HELD
            port.held.add(client, self._now + port.listener.hold_s)
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

    def _watch(self, leg: Leg) -> bool:
        """Registers a leg. False: the system has no room for it (`epoll.max_user_watches`, memory)."""
        self._legs[leg.fd] = leg
        try:
            self._epoll.register(leg.fd, _LEG)
        except OSError:
            return False
        return True

    def _preamble(self, client: Leg) -> bytes:
        if client.port.listener.client_ip is not _PROXY_V2 or client.address is None:
            return b""
        return header_v2(client.address, client.sock.getsockname())

    # --- legs that are not open yet, or not any more

    def _early(self, leg: Leg, mask: int) -> None:
        if leg.stage is _CONNECTING:
            self._connected(leg, mask)
        elif mask & _BROKEN:
            self._reset(leg)
        elif leg.stage is _HEAD:
            self._introduction.read(leg, self._now)
        elif leg.stage is _PARTING:
            self._introduction.discard(leg)

    def _connected(self, backend: Leg, mask: int) -> None:
        if mask & _BROKEN and (failure := backend.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._dial_failed(backend, os.strerror(failure))
            return
        if not mask & _OUT:
            return
        self._connecting.discard(backend)
        backend.stage = _OPEN
        if backend.out is None:
            if backend.fin:
                self._finish(backend)
        elif self._flush(backend) and backend.peer is not None:
            # While something waited for the backend, its client was not read.
            self._pump(backend.peer, True)
        if mask & _READABLE:
            self._pump(backend, mask & _MORE)

    def _dial_failed(self, backend: Leg, why: str) -> None:
        client = backend.peer
        self._drop(backend)
        if client is not None:
            client.peer = None
            self._give_up(client, f"the app does not accept connections: {why}")

    # --- ends

    def _give_up(self, client: Leg, reason: str) -> None:
        """Nobody can serve this client: 503 where HTTP is spoken (its request may be on the way), a reset elsewhere."""
        client.port.refused += 1
        if client.port.speaks_http:
            self._introduction.farewell(client, answer(503, reason, retry_after_s=1), self._now)
        else:
            self._reset(client)

    def _end(self, leg: Leg) -> None:
        """Both directions are finished."""
        peer = leg.peer
        self._drop(leg)
        if peer is not None:
            self._drop(peer)

    def _reset(self, leg: Leg) -> None:
        peer = leg.peer
        for each in (leg, peer):
            if each is not None and each.stage is not _CLOSED:
                reset_on_close(each.sock)
                self._drop(each)

    def _drop(self, leg: Leg) -> None:
        """Takes a leg out of everything; its socket is closed when the batch of events has ended."""
        if leg.stage is _CLOSED:
            return
        del self._legs[leg.fd]
        self._closing.append(leg.sock)
        if leg.out is not None:
            self._buffer_more(-len(leg.out))
            leg.out = None
        port = leg.port
        if leg.address is None:
            port.bytes_out += leg.moved
            if leg.stage is _CONNECTING:
                self._connecting.discard(leg)
        else:
            self._leave(leg, leg.address[0])
        leg.stage = _CLOSED
        leg.eof = True
        leg.peer = None

    def _leave(self, client: Leg, address: str) -> None:
        port = client.port
        port.clients.discard(client)
        port.bytes_in += client.moved
        self.admission.leave(address)
        if client.stage is _HELD:
            port.held.leave(client)
        elif client.stage is not _OPEN:
            self._introduction.leave(client)

    # --- time

    def tick(self) -> None:
        """What time brings: judges again, releases, gives up, cuts what is drained, idle or unanswered."""
        now = self._now = clock.now()
        if now - self._judged_at >= JUDGED_EVERY_S:
            self.rejudge()
        for backend in self._connecting.expired(now):
            self._dial_failed(backend, "no answer in time")
        self._introduction.tick(now)
        self._reception.reopen(now)
        for port in list(self._ports):
            self._tick_port(port, now)
        if now - self._swept_at >= min(5.0, self.limits.idle_s / 4):
            self._swept_at = now
            self._sweep(now)
        self._bury()

    def _tick_port(self, port: Port, now: float) -> None:
        for client in port.held.given_up(now):
            self._give_up(client, port.reason or "this app is being moved or started")
        if len(port.held) and self._reception.judge(port) is _LOCAL:
            self.release(port)
        if port.drain_at is not None and now >= port.drain_at:
            self.cut(port)

    def _sweep(self, now: float) -> None:
        for leg in list(self._legs.values()):
            peer = leg.peer
            if peer is None or leg.address is None:
                continue
            span = self.limits.half_closed_s if leg.eof or peer.eof else self.limits.idle_s
            if now - max(leg.active_at, peer.active_at) >= min(span, self.limits.idle_s):
                self._reset(leg)
