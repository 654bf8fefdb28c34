"""The legs of a worker: registered once, and taken out of everything when they end."""

from __future__ import annotations

import select
from typing import Final, Protocol

from piccolod import clock
from services.router.deadlines import Deadlines
from services.router.flow import Leg, Port, Stage, Stream
from services.router.introduction import Introduction
from services.router.limits import Admission, Limits
from services.router.reception import reset_on_close

_LEG: Final = select.EPOLLET | select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI

# Looking up a member in its enum costs 0.1 us, ten times for a new connection.
_OPEN: Final = Stage.OPEN
_CONNECTING: Final = Stage.CONNECTING
_HELD: Final = Stage.HELD
_CLOSED: Final = Stage.CLOSED

# Measured against iperf3 and wrk on 2 cores: 64 KiB loses 10 % of bulk, 256 KiB gains nothing more.
BUFFER_BYTES: Final = 128 * 1024
_SIP_BYTES: Final = 4 * 1024


class Party(Protocol):
    """A connection that belongs to no flow yet: of a tunnel, while its two ends come to terms."""

    fd: int

    def event(self, mask: int) -> None: ...


class Legs:
    """What each job of the relay stands on; single-threaded. The jobs are layers of one object, so that a call from one to
    another costs what a call costs: the relay has some 10 us for a request."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.admission = Admission(limits)
        self._epoll = select.epoll()
        self._legs: dict[int, Leg] = {}
        self._parties: dict[int, Party] = {}
        self._ports: set[Port] = set()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._sip = self._buffer[:_SIP_BYTES]
        self._introduction = Introduction(limits, self._buffer, self._dial, self._end, self._reset)
        self._cup = self._buffer  # what one read may take: all of it, until too much waits for slow readers
        self._buffered_bytes = 0
        self._closing: list[Stream] = []
        self._in_turn = False
        self._connecting: Deadlines[Leg] = Deadlines()
        self._now = clock.now()

    def _dial(self, client: Leg) -> None:
        raise NotImplementedError

    @property
    def now(self) -> float:
        """When this turn began."""
        return self._now

    @property
    def buffered_bytes(self) -> int:
        return self._buffered_bytes

    def _buffer_more(self, count: int) -> None:
        self._buffered_bytes += count
        self._cup = self._buffer if self._buffered_bytes < self.limits.buffered_bytes else self._sip

    def _watch(self, leg: Leg) -> bool:
        """Registers a leg. False: the system has no room for it (`epoll.max_user_watches`, memory)."""
        self._legs[leg.fd] = leg
        try:
            self._epoll.register(leg.fd, _LEG)
        except OSError:
            return False
        return True

    def seat(self, party: Party) -> bool:
        """Registers a party. False: the system has no room for it."""
        self._parties[party.fd] = party
        try:
            self._epoll.register(party.fd, _LEG)
        except OSError:
            return False
        return True

    def unseat(self, party: Party, sock: Stream) -> None:
        """Takes a party out; its socket is closed when the batch of events has ended."""
        if self._parties.pop(party.fd, None) is not None:
            self._closing.append(sock)

    def _marry(self, party: Party, leg: Leg) -> None:
        """A party becomes the leg of a flow, at the same descriptor."""
        del self._parties[party.fd]
        self._legs[leg.fd] = leg

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
            self._part(client)
        elif client.stage is not _OPEN:
            self._introduction.leave(client)

    def _part(self, client: Leg) -> None:
        """A held client has gone: whoever asks a leader for it need not go on."""
        raise NotImplementedError

    def _settle(self) -> None:
        """After something that was done out of any turn."""
        raise NotImplementedError

    def _bury(self) -> None:
        """Closes what ended, but not within a batch of events: a descriptor that is used again within one would get
        the events of its predecessor."""
        if self._in_turn:
            return
        closing, self._closing = self._closing, []
        for sock in closing:
            sock.close()
