"""The door for other nodes: whoever is a member may bring clients for what this node leads.

A guest is a connection without a client. It is proven by its handshake, says whom it brings, is looked up in the cluster's
list, and the gate is asked; then it is a client of the app's port like any other, and is cut like any other.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from piccolod import clock
from piccolod.errors import PiccoloError
from services.router.deadlines import Deadlines
from services.router.dialer import BROKEN
from services.router.flow import Address, Leg, Port, Stage
from services.router.limits import Limits
from services.router.reception import refuse
from services.router.route import Listener, Mode
from services.router.tunnel.ingress import Ingress
from services.router.tunnel.security import Peer
from services.router.tunnel.stream import Tunnel
from services.router.tunnel.wire import SERVED, WORDS_BYTES, Preamble, Verdict, preamble_of, refusal

_OPEN: Final = Stage.OPEN
_GONE: Final = BROKEN | select.EPOLLRDHUP
_LOCAL: Final = Mode.LOCAL

Vet = Callable[[Peer, Callable[[str], None]], None]
Find = Callable[[str, str], Port | None]


class At(IntEnum):
    """Where a guest is in its life."""

    SHAKING = 0
    SILENT = 1  # proven, and has said nothing
    VETTING = 2  # is being looked up


class Guest:
    __slots__ = ("_host", "at", "fd", "peer", "source", "tunnel")

    def __init__(self, host: Egress, tunnel: Tunnel, source: str) -> None:
        self._host = host
        self.tunnel = tunnel
        self.fd = tunnel.fd
        self.source = source
        self.at = At.SHAKING
        self.peer: Peer | None = None

    def event(self, mask: int) -> None:
        self._host.guest_event(self, mask)


class Egress(Ingress):
    """`vet(peer, then)` calls `then` with why a peer may not come, empty if it may: at once, or later. `find(app, listener)` is
    the port. `on_refused(source, reason)` hears of each guest that was sent away for what it is."""

    def __init__(self, limits: Limits, find: Find, judge: Callable[[Port], Mode]) -> None:
        super().__init__(limits)
        self._find = find
        self._judge = judge
        self._vet: Vet = _nobody
        self.on_refused: Callable[[str, str], None] = lambda _source, _reason: None
        self.peer_port = Port("", Listener(name="peers", public_port=0))  # counts those that come, and those sent away
        self._shaking: Deadlines[Guest] = Deadlines()
        self._silent: Deadlines[Guest] = Deadlines()
        self._vetting: set[Guest] = set()

    def vet_by(self, vet: Vet) -> None:
        self._vet = vet

    def dismiss_guests(self) -> None:
        """Of those that brought no client yet, all."""
        for guest in [*self._shaking, *self._silent, *self._vetting]:
            self._send_away(guest)

    def _arrive(self, port: Port, _mode: Mode, sock: socket.SocketType, fd: int, address: Address) -> None:
        port.total += 1
        guests = len(self._shaking) + len(self._silent) + len(self._vetting)
        try:
            if self._security is None or guests >= self.limits.guests:
                raise OSError(errno.EBUSY, "too many tunnels without a client")
            tunnel = Tunnel(sock, fd, self._security.server(), server=True)
        except (PiccoloError, OSError) as error:
            refuse(sock)
            self._refused_guest(address[0], error)
            return
        guest = Guest(self, tunnel, address[0])
        self._shaking.add(guest, self._now + self.limits.shake_s)
        if not self.seat(guest):
            self._send_away(guest)

    def guest_event(self, guest: Guest, mask: int) -> None:
        try:
            if guest.at is At.SHAKING:
                self._shake_hands(guest)
            if guest.at is At.SILENT:
                self._listen_to(guest)
            # Nobody ends its side while it waits for an answer.
            if guest.at is At.VETTING and mask & _GONE:
                self._send_away(guest)
        except (PiccoloError, OSError) as error:
            silent = guest.at is At.SILENT and not guest.tunnel.is_spoken_to
            self._send_away(guest)
            # A warm tunnel that its node closes is nothing to tell of.
            if not (silent and isinstance(error, ConnectionError)):
                self._refused_guest(guest.source, error)

    def _shake_hands(self, guest: Guest) -> None:
        if not guest.tunnel.handshake(self._buffer):
            return
        assert self._security is not None
        guest.peer = self._security.peer(guest.tunnel.tls)
        self._be_silent(guest)

    def _be_silent(self, guest: Guest) -> None:
        self._shaking.discard(guest)
        self._vetting.discard(guest)
        guest.at = At.SILENT
        # A little longer than its node keeps it, which so is the one that closes it.
        self._silent.add(guest, self._now + self.limits.warm_s * 1.5)

    def _listen_to(self, guest: Guest) -> None:
        guest.tunnel.push()
        words = guest.tunnel.hear(self._buffer, WORDS_BYTES)
        if words is None:
            if guest.tunnel.is_spoken_to and guest not in self._shaking:
                self._silent.discard(guest)
                self._shaking.add(guest, self._now + self.limits.shake_s)
            return
        preamble = preamble_of(words)
        self._silent.discard(guest)
        self._shaking.discard(guest)
        guest.at = At.VETTING
        self._vetting.add(guest)
        assert guest.peer is not None
        self._vet(guest.peer, lambda reason: self._vetted(guest, preamble, reason))

    def _vetted(self, guest: Guest, preamble: Preamble, reason: str) -> None:
        """The list has spoken, at once or much later."""
        if guest not in self._vetting:
            return
        if self._in_turn:
            self._admit(guest, preamble, reason)
            return
        self._now = clock.now()
        self._admit(guest, preamble, reason)
        self._settle()

    def _admit(self, guest: Guest, preamble: Preamble, reason: str) -> None:
        if reason:
            self._tell(guest, Verdict.LATER, reason)
            self._refused_guest(guest.source, reason)
            return
        port = self._find(preamble.app, preamble.listener)
        if why := self._not_yet(port, preamble):
            self._tell(guest, Verdict.LATER, why)
        elif port is not None and not self.admission.enter(preamble.address):
            port.refused += 1
            self._tell(guest, Verdict.NEVER, "this app has too many connections")
        elif port is not None:
            self._take_in(guest, port, preamble)

    def _not_yet(self, port: Port | None, preamble: Preamble) -> str:
        """Why a client cannot be served here now, empty if it can."""
        if port is None:
            return f"it has no route for {preamble.app}/{preamble.listener}"
        mode = self._judge(port)
        if port.epoch != preamble.epoch:
            return f"it has epoch {port.epoch} of {preamble.app}, not {preamble.epoch}"
        if mode is not _LOCAL:
            return port.reason or f"its route of {preamble.app} is {mode}"
        return ""

    def _tell(self, guest: Guest, verdict: Verdict, reason: str) -> None:
        """It may bring another client, or the same again."""
        self._be_silent(guest)
        try:
            guest.tunnel.say(refusal(verdict, reason))
        except OSError:
            self._send_away(guest)

    def _take_in(self, guest: Guest, port: Port, preamble: Preamble) -> None:
        self._vetting.discard(guest)
        port.total += 1
        client = Leg(guest.tunnel, guest.fd, port, _OPEN, self._now)
        client.tunnel = guest.tunnel
        client.address = preamble.address, preamble.port
        port.clients.add(client)
        self._marry(guest, client)
        self._dial(client)

    def _tell_served(self, client: Leg) -> bool:
        tunnel = client.tunnel
        assert tunnel is not None
        try:
            if not tunnel.say(SERVED):
                self._keep(client, memoryview(b""))
        except OSError as error:
            self._break(client, error)
            return False
        # It may have been there before its container was.
        self._again.append(client)
        return True

    def _give_up(self, client: Leg, reason: str) -> None:
        """Its own node answers it."""
        if client.tunnel is None:
            super()._give_up(client, reason)
            return
        client.port.refused += 1
        try:
            client.tunnel.say(refusal(Verdict.NEVER, reason))
        except OSError:
            self._reset(client)
        else:
            self._drop(client)

    def _send_away(self, guest: Guest) -> None:
        self._shaking.discard(guest)
        self._silent.discard(guest)
        self._vetting.discard(guest)
        self.unseat(guest, guest.tunnel)

    def _refused_guest(self, source: str, why: object) -> None:
        self.peer_port.refused += 1
        if isinstance(why, PiccoloError):
            why = why.detail
        elif isinstance(why, OSError):
            why = getattr(why, "reason", "") or why.strerror or str(why)
        self.on_refused(source, str(why))

    def _tick_guests(self, now: float) -> None:
        for guest in self._shaking.expired(now):
            self._send_away(guest)
            self._refused_guest(guest.source, "it did not come to terms in time")
        for guest in self._silent.expired(now):
            self._send_away(guest)


def _nobody(_peer: Peer, then: Callable[[str], None]) -> None:
    then("nobody says who is a member")
