"""Clients of this node whose app is led elsewhere: each gets a line to the leader's router, or is held and tried again.

Nothing of a client is read before the leader has answered that its container is connected. So a client that came before the
failover was known here loses nothing by it: whoever leads next serves it from its first byte.
"""

from __future__ import annotations

from typing import Final

from services.router.dialer import Dialer
from services.router.flow import Leg, Port, Stage
from services.router.limits import Limits
from services.router.proxy_protocol import unmapped
from services.router.route import Leader, Mode
from services.router.tunnel.pool import Line, Pool
from services.router.tunnel.security import Security
from services.router.tunnel.way import Way
from services.router.tunnel.wire import Answer, Preamble, Verdict

_OPEN: Final = Stage.OPEN
_HELD: Final = Stage.HELD
_TUNNEL: Final = Mode.TUNNEL
_ALONE: Final = "this node is a member of no cluster"


class Ingress(Dialer):
    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._security: Security | None = None
        self._pools: dict[Leader, Pool] = {}

    def secure(self, security: Security | None) -> None:
        """Of a member; None: of a node alone. Lines of before are closed."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self._security = security
        for port in self._ports:
            self.turn(port)

    def turn(self, port: Port) -> None:
        """Its route leads elsewhere: whoever waits is asked for there, at once."""
        way = port.way
        port.trouble = ""
        if way is not None:
            self._abandon(port, way)
        if port.mode is not _TUNNEL:
            return
        port.way = Way(port.leader)
        for client in list(port.held):
            if port.reads_head and not client.early:
                port.held.leave(client)
                self._introduction.begin(client, self._now)
            else:
                port.way.queue.append(client)
        if (pool := self._pool(port)) is not None:
            pool.need(self._now)
            pool.fill(self._now)
        self._serve(port)

    def _abandon(self, port: Port, way: Way) -> None:
        for line in list(way.asking.values()):
            self._drop_line(line)
        way.asking.clear()
        port.way = None
        pool = self._pools.get(way.leader) if way.leader is not None else None
        if pool is None:
            return
        pool.waiting.pop(port, None)
        if not any(each.leader == pool.leader and each.mode is _TUNNEL for each in (*self._ports, port)):
            pool.close()
            del self._pools[pool.leader]

    # --- clients

    def _wait(self, client: Leg) -> None:
        super()._wait(client)
        port = client.port
        if port.mode is _TUNNEL:
            if port.way is None:
                port.way = Way(port.leader)
            port.way.queue.append(client)
            self._serve(port)

    def _part(self, client: Leg) -> None:
        way = client.port.way
        if way is not None and (line := way.asking.pop(client, None)) is not None:
            self._drop_line(line)

    def _give_up(self, client: Leg, reason: str) -> None:
        self._part(client)
        super()._give_up(client, reason)

    def _serve(self, port: Port) -> None:
        """Asks for those who wait, as far as there are lines and the leader is worth asking."""
        way, pool = port.way, self._pool(port)
        if way is None:
            return
        if pool is None:
            port.trouble = _ALONE
            return
        needed = False
        while way.queue and way.may_ask(self._now):
            if way.queue[0].stage is not _HELD or way.queue[0] not in port.held:
                way.queue.popleft()
                continue
            needed = True
            line = pool.take()
            if line is None:
                break
            client = way.queue.popleft()
            assert client.address is not None
            way.asking[client] = line
            address, number = client.address[:2]
            words = Preamble(
                app=port.app, listener=port.listener.name, epoch=port.epoch, address=unmapped(address), port=number
            )
            pool.ask(line, client, words, self._now)
        if way.queue:
            pool.waiting[port] = None
        else:
            pool.waiting.pop(port, None)
        if needed:
            pool.need(self._now)

    def _serve_after(self, port: Port) -> None:
        if port.way is not None and port.way.queue:
            self._serve(port)

    def _hold_again(self, client: Leg) -> bool:
        """Whether a client whose flow is to be cut can wait for the next leader: nothing went either way yet."""
        leader = client.peer
        if leader is None or leader.tunnel is None or client.moved or leader.moved or client.eof or leader.eof:
            return False
        client.peer = None
        client.fin = False
        client.stage = _HELD
        client.port.held.add(client, self._now + client.port.listener.hold_s)
        self._drop(leader)
        return True

    # --- what the lines tell

    def has_ready(self, pool: Pool) -> None:
        for port in list(pool.waiting):
            if not pool.ready:
                return
            self._serve(port)

    def has_failed(self, pool: Pool, reason: str) -> None:
        for port in pool.waiting:
            self._refused(port, reason)

    def has_broken(self, line: Line, reason: str, *, stale: bool) -> None:
        client = line.client
        assert client is not None
        port = client.port
        if not self._wait_again(client):
            return
        if not stale:
            self._refused(port, f"{port.leader.node if port.leader else 'the leader'} did not answer: {reason}")
        self._serve(port)

    def has_answered(self, line: Line, answer: Answer) -> None:
        client = line.client
        assert client is not None
        port, pool = client.port, line.pool
        if answer.verdict is Verdict.SERVED:
            if port.way is not None:
                port.way.asking.pop(client, None)
                port.way.served()
            port.trouble = ""
            pool.give_away(line)
            self._join(client, line)
            self._serve_after(port)
            return
        if answer.verdict is Verdict.LATER:
            pool.put_back(line, self._now)
            if self._wait_again(client):
                self._refused(port, f"{pool.leader.node}: {answer.reason}")
            self.has_ready(pool)
        else:
            port.held.leave(client)  # `_give_up` drops the line
            self._give_up(client, answer.reason)
        self._serve_after(port)

    def _wait_again(self, client: Leg) -> bool:
        """False: it does not wait any more."""
        way = client.port.way
        if way is None or way.asking.pop(client, None) is None:
            return False
        way.queue.appendleft(client)
        return True

    def _refused(self, port: Port, reason: str) -> None:
        port.trouble = reason
        if port.way is not None:
            port.way.refused(self._now)

    def _join(self, client: Leg, line: Line) -> None:
        """Bytes flow from now on."""
        port, tunnel = client.port, line.tunnel
        assert tunnel is not None
        port.held.leave(client)
        client.stage = _OPEN
        leader = Leg(tunnel, line.fd, port, _OPEN, self._now)
        leader.tunnel = tunnel
        client.peer, leader.peer = leader, client
        self._marry(line, leader)
        early, client.early = self._preamble(client) + client.early, b""
        try:
            if early and tunnel.send(early) < len(early):
                self._keep(leader, memoryview(early))
        except OSError as error:
            self._break(leader, error)
            return
        # What both have sent already causes no further event.
        self._again.append(client)
        self._again.append(leader)

    # --- lines

    def _pool(self, port: Port) -> Pool | None:
        if self._security is None or port.leader is None:
            return None
        pool = self._pools.get(port.leader)
        if pool is None:
            pool = self._pools[port.leader] = Pool(self, self._buffer, port.leader, self._security, self)
        return pool

    def _drop_line(self, line: Line) -> None:
        line.pool.drop(line)

    def _tick_pools(self, now: float) -> None:
        for pool in list(self._pools.values()):
            pool.tick(now)
            self.has_ready(pool)
