"""The desk that lets nodes in, as modules see it without the bus, and the machines that come to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from piccolod import clock, cluster_mode
from piccolod.bus.caller import Caller
from piccolod.errors import (
    PiccoloError,
)
from piccolod.paths import Paths
from piccolod.pki import token as tokens
from piccolod.pki.authority import make_key, make_request
from piccolod.pki.identity import Role
from piccolod.pki.token import JoinToken
from piccolod.protocol.joining import (
    CreateJoinToken,
    GetJoinTokens,
    IssueCertificate,
    JoinTokenView,
    Redeem,
)
from services.persistence import admission, cluster_ca
from services.persistence.admission import NODES, NodeRecord
from services.persistence.joining import JoiningCommands
from services.persistence.ledger import Write
from services.persistence.state import ABSENT, put
from services.persistence.vault import Vault

from .test_vault import PASSWORD, start


class Machine:
    """A node that asks to be let in."""

    def __init__(self, name: str, address: str = "10.77.0.2", role: Role = Role.MEMBER) -> None:
        self.name, self.address, self.role = name, address, role
        self.key = make_key()
        self.csr = make_request(self.key)

    def redeem(self, token: JoinToken, **other: Any) -> Redeem:
        asked = Redeem(
            id=token.id, secret=token.secret, node=self.name, role=self.role, address=self.address, csr=self.csr,
            rpc=f"{self.address}:7444", client_url=f"https://{self.address}:2379", peer_url=f"https://{self.address}:2380",
        )  # fmt: skip
        return msgspec.structs.replace(asked, **other)

    def certificate(self, **other: Any) -> IssueCertificate:
        asked = IssueCertificate(csr=self.csr, node=self.name, role=self.role, address=self.address)
        return msgspec.structs.replace(asked, **other)


class Desk:
    """The commands as modules see them, without the bus."""

    def __init__(self, vault: Vault, paths: Paths) -> None:
        self.vault = vault
        self.paths = paths
        self._handlers: dict[type, Callable[[Any, Caller], Awaitable[Any]]] = {}
        log = SimpleNamespace(info=lambda *_, **__: None)
        module: Any = SimpleNamespace(
            log=log, paths=paths, config=SimpleNamespace(node=SimpleNamespace(name="n1")), serve=self._handlers.__setitem__
        )
        JoiningCommands(vault, module).serve(module)

    async def ask(self, request: Any, by: str = "api") -> Any:
        return await self._handlers[type(request)](request, Caller(by, 1, "", "", clock.FOREVER))

    async def refused(self, request: Any, by: str = "api") -> PiccoloError:
        """Refused without a trace in the log, and with a hint."""
        before = self.rev
        with pytest.raises(PiccoloError) as refusal:
            await self.ask(request, by)
        assert self.rev == before and refusal.value.hint
        return refusal.value

    async def token(self, role: Role = Role.MEMBER, ttl_s: float = 3600.0) -> JoinToken:
        made = await self.ask(CreateJoinToken(role=role, ttl_s=ttl_s, author="admin"))
        return tokens.parse(made.token)

    async def known(self, token: JoinToken) -> JoinTokenView:
        return next(each for each in (await self.ask(GetJoinTokens())).tokens if each.id == token.id)

    @property
    def rev(self) -> int:
        return self.state.rev

    @property
    def state(self) -> Any:
        return self.vault.unlocked()[0].state

    def node(self, name: str) -> NodeRecord | None:
        return admission.record(NodeRecord, self.state.get(NODES, name), name)

    def enter_cluster(self, etcd: cluster_mode.Keeping = "managed") -> None:
        cluster_mode.make_folder(self.paths.cluster)
        cluster_mode.enter(self.paths.cluster, cluster_mode.Mode(cluster=self.vault.cluster, node="n1", since_ms=1, etcd=etcd))

    async def commit(self, collection: str, id: str, document: Any, expect: int | None = None) -> int:
        expected = {} if expect is None else {(collection, id): expect}
        return (await self.vault.unlocked()[1].commit(Write([put(collection, id, document)], expected, "t", "", 1))).rev


def with_desk(folder: Path, work: Callable[[Desk], Awaitable[None]], *, member: bool = True) -> None:
    paths = Paths(state=folder / "state", run=folder / "run")

    async def run(vault: Vault) -> None:
        await vault.set_up(PASSWORD)
        desk = Desk(vault, paths)
        ca = cluster_ca.create(vault.cluster)
        await desk.commit(cluster_ca.COLLECTION, cluster_ca.ID, cluster_ca.document(ca), ABSENT)
        if member:
            desk.enter_cluster()
        await work(desk)

    start(folder, run)
