"""Nodes of one cluster as far as their routers go: each a relay with a real gate, real routes and a real certificate."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from piccolod import clock
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader
from piccolod.pki import authority as pki
from piccolod.pki.authority import Authority, make_key, make_request
from piccolod.pki.identity import Identity, Role
from piccolod.pki.node_files import NodeFiles
from services.router import route as routes
from services.router.flow import Port
from services.router.relay import Relay
from services.router.route import ClientIp, Listener, Mode, Protocol, Route, Target
from services.router.table import RouteTable
from services.router.tunnel.security import Peer, Security

from ..harness import LIMITS, RESOURCE, Client, Leader, backend, echo, listening, until

CLUSTER = "c0ffee00c0ffee00c0ffee00c0ffee00"
APP = "notes"


class Node:
    """`listed` is what it believes of the others: the keys of the members. `removed` are those that were taken off."""

    def __init__(self, folder: Path, name: str, authority: Authority, listed: dict[str, str], **limits: Any) -> None:
        self.name, self.folder, self.authority, self.listed = name, folder, authority, listed
        self.folder.mkdir()
        self.key = make_key()
        self.certify()
        listed[name] = pki.key_of_request(make_request(self.key))
        self.refused: list[str] = []
        self.page = Leader(folder / "page")
        self.page.lead()
        self.reader = PageReader(folder / "page")
        self.table = RouteTable(Gate(self.reader), lambda _app: None)
        self.relay = Relay(dataclasses.replace(LIMITS, **limits), self.table.judge, self.table.port)
        self.table.bind(self.relay)
        self.failure = self.relay.attach(asyncio.get_running_loop())
        self.relay.vet_by(self._vet)
        self.relay.on_refused = lambda _source, reason: self.refused.append(reason)
        self.security = Security(NodeFiles(folder), CLUSTER)
        self.relay.secure(self.security)
        self.public, self.peers = listening(), listening()
        self.number: int = self.public.getsockname()[1]
        self.peer_number: int = self.peers.getsockname()[1]
        self.door = self.relay.open_to_peers(self.peers)
        self.protocol, self.client_ip, self.hold_s = Protocol.RAW, ClientIp.NONE, 5.0
        self.vetted_late = False
        self._opened = False

    def certify(self, *, role: Role = Role.MEMBER, cluster: str = CLUSTER, by: Authority | None = None, name: str = "") -> None:
        """Writes its certificate anew, for the same key."""
        identity = Identity(cluster, name or self.name, role)
        certificate = (by or self.authority).sign(make_request(self.key), identity, "127.0.0.1", time.time())
        (self.folder / "node.key").write_bytes(self.key)
        (self.folder / "ca.pem").write_text(self.authority.pem)
        draft = self.folder / "node.pem.new"
        draft.write_text(certificate)
        draft.replace(self.folder / "node.pem")

    def _vet(self, peer: Peer, then: Callable[[str], None]) -> None:
        reason = "" if self.listed.get(peer.node) == peer.key else f"{peer.node} is no node of this cluster any more"
        if self.vetted_late:
            asyncio.get_running_loop().call_later(0.02, then, reason)
        else:
            then(reason)

    # --- routes

    def leads(self, at: tuple[str, int] | None, epoch: int = 4, token: int = 9) -> None:
        self.page.lead(token=token, epoch=epoch)
        targets = (Target(listener="web", address=at[0], port=at[1]),) if at else ()
        self._offer(Mode.LOCAL, epoch, resource=RESOURCE, token=token, targets=targets)

    def follows(self, other: Node, epoch: int = 4, named: str = "", number: int = 0) -> None:
        leader = routes.Leader(node=named or other.name, address="127.0.0.1", port=number or other.peer_number)
        self._offer(Mode.TUNNEL, epoch, leader=leader)

    def holds(self, epoch: int = 4) -> None:
        self._offer(Mode.HOLD, epoch)

    def _offer(self, mode: Mode, epoch: int, **more: Any) -> None:
        listener = Listener(
            name="web", public_port=self.number, protocol=self.protocol, client_ip=self.client_ip, hold_s=self.hold_s
        )
        self.table.offer(Route(app=APP, mode=mode, epoch=epoch, listeners=(listener,), **more))
        if not self._opened:
            self._opened = True
            self.relay.open(self.port, self.public)

    @property
    def port(self) -> Port:
        port = self.table.port(APP, "web")
        assert port is not None
        return port

    # --- clients

    async def connect(self, **more: Any) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.number, **more))

    async def asked(self, data: bytes) -> bytes:
        client = await self.connect()
        try:
            return await client.ask(data)
        finally:
            await client.close()

    async def talking(self) -> Client:
        client = await self.connect()
        await client.hears(b"a")
        return client

    @property
    def lines(self) -> int:
        """Connections to leaders that are up and have no client."""
        return sum(pool.lines for pool in self.relay._pools.values())

    async def idle(self) -> None:
        """Waits until no flow is left."""
        await until(lambda: not self.relay._legs, f"{self.name} has no flow any more")
        assert self.relay.buffered_bytes == 0
        assert self.relay.admission.total == 0

    def close(self) -> None:
        self.relay.close()
        self.reader.close()
        self.page.close()
        self.public.close()
        self.peers.close()


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(CLUSTER)
        self.listed: dict[str, str] = {}
        self.nodes: list[Node] = []

    def node(self, name: str, authority: Authority | None = None, **limits: Any) -> Node:
        node = Node(self.folder / name, name, authority or self.authority, self.listed, **limits)
        self.nodes.append(node)
        return node


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Every relay is still alive at the end: one that died of an exception fails the test that did it."""
    made = Cluster(folder)
    try:
        yield made
        for node in made.nodes:
            assert not node.failure.done(), node.failure.exception()
    finally:
        for node in made.nodes:
            node.close()


@contextlib.asynccontextmanager
async def three(folder: Path) -> AsyncIterator[tuple[tuple[str, int], Node, Node, Node]]:
    """Where a container echoes, and n1, whose clients are led to n2, which leads; n3 knows nothing yet."""
    async with backend(echo) as at:
        with cluster(folder) as made:
            n1, n2, n3 = made.node("n1"), made.node("n2"), made.node("n3")
            n2.leads(at)
            n1.follows(n2)
            yield at, n1, n2, n3


@contextlib.asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    """n1, whose clients are led to n2, which leads a container that echoes."""
    async with three(folder) as (_, n1, n2, _):
        yield n1, n2


async def served_within(client: Client, data: bytes, within_s: float) -> float:
    """Sends to an echo and waits for the same; seconds that it took."""
    began = clock.now()
    client.writer.write(data)
    assert await asyncio.wait_for(client.reader.readexactly(len(data)), within_s) == data
    return clock.now() - began
