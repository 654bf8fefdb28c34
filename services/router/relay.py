"""The relay: bytes between clients and containers, on one epoll.

Every socket is registered once, edge-triggered, for both directions. Readiness is only a hint: what is true is what `recv`
and `send` say, so a stale or repeated event does no harm. The jobs are layers: `Legs` knows every socket, `Pump` moves bytes,
`Dialer` connects, `Ingress` and `Egress` are the two ends of a tunnel, and `Relay` has the ports, the turns and the time.

Who may be forwarded is not decided here: `judge` is asked for each batch of new connections, and again for every port
before the first byte after a pause (a worker that was frozen must not go on where it was).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from piccolod import clock
from services.router.dialer import BROKEN, MORE, OUT, READABLE
from services.router.flow import Address, Door, Leg, Port, Stage
from services.router.limits import Limits
from services.router.reception import Reception, refuse
from services.router.route import Mode
from services.router.tunnel.egress import Egress, Find
from services.router.tunnel.security import Security

_CONNECTING: Final = Stage.CONNECTING
_HELD: Final = Stage.HELD
_HEAD: Final = Stage.HEAD
_PARTING: Final = Stage.PARTING
_LOCAL: Final = Mode.LOCAL
_HOLD: Final = Mode.HOLD
_REFUSED: Final = Mode.CLOSED

_EVENTS: Final = 64
_SLICE_S: Final = 0.01  # then the module's loop has its turn: beats, commands
_LINGER_S: Final = 0.002  # waiting here is cheaper than a turn of the module's loop when traffic flows
_TICK_S: Final = 0.05
JUDGED_EVERY_S: Final = 0.1


class Relay(Egress):
    """All flows of one worker. Single-threaded, on the module's event loop. `find` is for clients that other nodes bring."""

    def __init__(self, limits: Limits, judge: Callable[[Port], Mode], find: Find = lambda _app, _listener: None) -> None:
        super().__init__(limits, find, judge)
        self._reception = Reception(self._epoll, judge, self._welcome)
        self._resuming = False
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
        if self._timer is None and self._loop is not None and (self._legs or self._parties or self._reception.paused):
            self._timer = self._loop.call_later(_TICK_S, self._guarded, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.tick()
        self._arm()

    # --- ports

    def open(self, port: Port, sock: socket.socket) -> Door:
        """Accepts for `port` from `sock`, which is shared with other workers and must listen already."""
        self._ports.add(port)
        return self._reception.open(port, sock)

    def open_to_peers(self, sock: socket.socket) -> Door:
        """Accepts other nodes from `sock`, which is shared with other workers and must listen already."""
        return self._reception.open(self.peer_port, sock, self._arrive)

    def shut(self, door: Door) -> None:
        """Accepts no more. The flows of its port run on until `cut`."""
        self._reception.shut(door)

    def turn(self, port: Port) -> None:
        self._now = clock.now()
        super().turn(port)
        self._settle()

    def secure(self, security: Security | None) -> None:
        self._now = clock.now()
        self.dismiss_guests()
        super().secure(security)
        self._settle()

    def cut(self, port: Port) -> None:
        """Resets every flow of `port`, at once. Held connections stay, and those that have our answer and nothing else; those
        of a tunnel that had nothing to say yet are held."""
        port.drain_at = None
        for client in list(port.clients):
            if client.stage is not _HELD and client.stage is not _PARTING and not self._hold_again(client):
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
        self.turn(port)
        self._ports.discard(port)

    def close(self) -> None:
        """Resets every flow and closes every door."""
        self._detach()
        self._reception.close()
        for leg in list(self._legs.values()):
            self._reset(leg)
        self.secure(None)
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

    def _settle(self) -> None:
        self._bury()
        self._resume()
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
                elif (party := self._parties.get(fd)) is not None:
                    party.event(mask)
                continue
            leg.active_at = now
            if leg.stage:
                self._early(leg, mask)
                continue
            if leg.out is not None and mask & OUT and self._flush(leg) and leg.peer is not None:
                self._pump(leg.peer, True)
            if mask & READABLE:
                self._pump(leg, mask & MORE)
        for _ in range(len(self._again)):
            self._pump(self._again.popleft(), True)
        # Last, so that running flows come first and no new descriptor meets an old event.
        for door in doors:
            self._reception.accept(door, now)

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

    # --- legs that are not open yet, or not any more

    def _early(self, leg: Leg, mask: int) -> None:
        if leg.stage is _CONNECTING:
            self._connected(leg, mask)
        elif mask & BROKEN:
            self._reset(leg)
        elif leg.stage is _HEAD:
            self._introduction.read(leg, self._now)
        elif leg.stage is _PARTING:
            self._introduction.discard(leg)

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
        self._tick_pools(now)
        self._tick_guests(now)
        for port in list(self._ports):
            self._tick_port(port, now)
        if now - self._swept_at >= min(5.0, self.limits.idle_s / 4):
            self._swept_at = now
            self._sweep(now)
        self._bury()

    def _tick_port(self, port: Port, now: float) -> None:
        for client in port.held.given_up(now):
            self._give_up(client, port.reason or port.trouble or "this app is being moved or started")
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
