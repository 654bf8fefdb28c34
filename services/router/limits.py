"""How many connections a worker takes, in all and from one address."""

from __future__ import annotations

import resource
from dataclasses import dataclass

# Descriptors that are not flows: epoll, the loop, the bus, listening sockets, logs.
_OTHER_DESCRIPTORS = 512
_PER_FLOW = 2
_MOST_DESCRIPTORS = 200_000  # below Linux's default fs.nr_open


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections, seconds and bytes that the relay never exceeds."""

    total: int
    per_client: int
    connect_s: float = 5.0
    head_s: float = 10.0  # a request's head (xff)
    farewell_s: float = 2.0  # between our last answer and the reset
    idle_s: float = 3600.0  # dead peers are found by keepalive long before
    half_closed_s: float = 600.0
    shake_s: float = 5.0  # of a tunnel: connect and handshake, and a preamble once it has begun
    ask_s: float = 6.0  # between a preamble and its answer, which waits for a container
    warm_s: float = 60.0  # a tunnel that nobody needs, and those that are kept ready after the last need
    warm: int = 4  # tunnels kept ready for a leader
    shaking: int = 8  # tunnels to one leader that come up at a time
    guests: int = 256  # tunnels of other nodes that have no client yet
    buffered_bytes: int = 32 * 2**20  # of all flows; beyond it each takes small sips

    @classmethod
    def of_this_process(cls) -> Limits:
        """As many flows as there are descriptors; one client can never take more than half of them."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
        if soft == resource.RLIM_INFINITY or soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        total = max(64, (most - _OTHER_DESCRIPTORS) // _PER_FLOW)
        return cls(total=total, per_client=max(32, total // 2))


class Admission:
    """Who is connected, counted by address."""

    __slots__ = ("_by_client", "_limits", "refused", "total")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_client: dict[str, int] = {}
        self.total = 0
        self.refused = 0

    def enter(self, client: str) -> bool:
        """False: one of the limits is reached, nothing was counted."""
        count = self._by_client.get(client, 0)
        if count >= self._limits.per_client or self.total >= self._limits.total:
            self.refused += 1
            return False
        self._by_client[client] = count + 1
        self.total += 1
        return True

    def leave(self, client: str) -> None:
        count = self._by_client[client] - 1
        if count:
            self._by_client[client] = count
        else:
            del self._by_client[client]
        self.total -= 1
