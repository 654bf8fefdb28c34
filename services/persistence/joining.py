"""Commands on who belongs to the cluster: certificates of nodes, join tokens, the list `nodes`. The rules are in admission.py.

Each change is one entry of the log, under the gate of the kernel like any other; signing is none, and needs only the authority.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from piccolod import clock, cluster_mode
from piccolod.cluster_mode import Mode
from piccolod.errors import Busy, Conflict, Forbidden, Invalid, StoreCorrupt, Unavailable
from piccolod.module import Caller, Module
from piccolod.pki import authority as pki
from piccolod.pki import token as tokens
from piccolod.pki.authority import Authority
from piccolod.pki.identity import Identity
from piccolod.protocol.base import Nothing
from piccolod.protocol.joining import (
    CheckNode,
    CreateJoinToken,
    ForgetNode,
    GetJoinTokens,
    IssueCertificate,
    Issued,
    JoinTokens,
    JoinTokenView,
    NewJoinToken,
    Redeem,
    Redeemed,
    Revoked,
    RevokeJoinToken,
    TokenState,
)
from services.persistence import admission, cluster_ca
from services.persistence.admission import NODES, TOKENS, NodeRecord, TokenRecord
from services.persistence.entry import Op
from services.persistence.ledger import Write
from services.persistence.log import REPAIR_HINT
from services.persistence.state import ABSENT, Key, State, delete, put
from services.persistence.vault import Vault

_TRIES: Final = 4
_URL_BYTES: Final = 300
_FOUNDER: Final = "consensus"
SETTINGS: Final = ("settings", "cluster")


class JoiningCommands:
    """Each waits until the store was looked at, so that a command right after a restart finds it unlocked."""

    def __init__(self, vault: Vault, module: Module) -> None:
        self._vault = vault
        self._log = module.log
        self._folder = module.paths.cluster
        self._own_node = module.config.node.name

    def serve(self, module: Module) -> None:
        module.serve(IssueCertificate, self._issue_certificate)
        module.serve(CreateJoinToken, self._create_token)
        module.serve(GetJoinTokens, self._tokens)
        module.serve(RevokeJoinToken, self._revoke_token)
        module.serve(Redeem, self._redeem)
        module.serve(ForgetNode, self._forget_node)
        module.serve(CheckNode, self._check_node)

    # --- certificates

    async def _issue_certificate(self, request: IssueCertificate, caller: Caller) -> Issued:
        state, ca = await self._open()
        identity = Identity(self._vault.cluster, request.node, request.role)
        key = pki.key_of_request(request.csr)
        if cluster_mode.load(self._folder) is None:
            if caller.module != _FOUNDER or request.node != self._own_node:
                raise _alone()
            address = _address(request.address)
            certificate = ca.sign(request.csr, identity, address, time.time())
            await self._found(state, request, key, caller)
            return Issued(certificate=certificate, ca=ca.pem)
        listed = admission.check_renewal(request.node, request.role, key, _node(state, request.node))
        certificate = ca.sign(request.csr, identity, listed.address, time.time())
        self._log.info("signed a certificate", node=request.node, role=request.role, asked_by=caller.module)
        return Issued(certificate=certificate, ca=ca.pem)

    async def _found(self, state: State, request: IssueCertificate, key: str, caller: Caller) -> None:
        """Lists the first member, and nobody else: what a `cluster init` that did not come to its end has left is gone."""
        before, chosen = _node(state, request.node), _chosen(state, request)
        if before is not None and before.key == key and len(state.list(NODES)) == 1 and not chosen:
            return
        made = NodeRecord(role=request.role, address=request.address, key=key, joined_ms=clock.wall_ms())
        others = [delete(NODES, id) for id in state.list(NODES) if id != request.node]
        await self._commit([put(NODES, request.node, _document(made)), *others, *chosen], {}, caller.module)

    # --- tokens

    async def _create_token(self, request: CreateJoinToken, caller: Caller) -> NewJoinToken:
        state, ca = await self._open()
        admission.check_vote(request.role, self._mode())
        admission.check_life(request.ttl_s)
        known, now_ms = _tokens(state), clock.wall_ms()
        admission.check_room(known, now_ms)
        made = tokens.issue(ca.fingerprint)
        kept = TokenRecord(
            digest=tokens.digest(made.secret),
            role=request.role,
            author=request.author,
            created_ms=now_ms,
            expires_ms=now_ms + round(request.ttl_s * 1000),
        )
        gone = [delete(TOKENS, id) for id in admission.outlived(known, now_ms)]
        rev = await self._commit(
            [put(TOKENS, made.id, _document(kept)), *gone], {(TOKENS, made.id): ABSENT}, request.author
        )  # fmt: skip
        return NewJoinToken(id=made.id, token=made.text, role=request.role, expires_ms=kept.expires_ms, rev=rev)

    async def _tokens(self, request: GetJoinTokens, caller: Caller) -> JoinTokens:
        state, _ = await self._open()
        now_ms = clock.wall_ms()
        views = [_view(id, each, now_ms) for id, each in _tokens(state).items()]
        return JoinTokens(tokens=tuple(sorted(views, key=lambda view: view.created_ms, reverse=True)))

    async def _revoke_token(self, request: RevokeJoinToken, caller: Caller) -> Revoked:
        for _ in range(_TRIES):
            state, _ = await self._open()
            now_ms = clock.wall_ms()
            token = admission.check_revocation(request.id, _token(state, request.id), now_ms)
            if token.state(now_ms) is TokenState.REVOKED:
                return Revoked(rev=state.rev)
            ended = msgspec.structs.replace(token, ended_ms=now_ms)
            seen = _seen(state, (TOKENS, request.id))
            try:
                return Revoked(rev=await self._commit([put(TOKENS, request.id, _document(ended))], seen, request.author))
            except Conflict:
                continue  # a node came with it at the same moment
        raise _busy()

    # --- a node comes

    async def _redeem(self, request: Redeem, caller: Caller) -> Redeemed:
        key = pki.key_of_request(request.csr)
        _check_places(request)
        for _ in range(_TRIES):
            state, ca = await self._open()
            mode = self._mode()
            identity = Identity(self._vault.cluster, request.node, request.role)
            now_ms = clock.wall_ms()
            token, listed = _token(state, request.id), _node(state, request.node)
            known = admission.redeem(token, request.secret, request.node, request.role, key, listed, now_ms)
            admission.check_etcd(request.node, request.etcd_id, mode)
            certificate = ca.sign(request.csr, identity, _address(request.address), time.time())
            rev = state.rev
            if not known and token is not None:
                used = msgspec.structs.replace(token, node=request.node, key=key, ended_ms=now_ms)
                ops = [
                    put(TOKENS, request.id, _document(used)),
                    put(NODES, request.node, _document(_joined(request, key, now_ms))),
                ]
                try:
                    rev = await self._commit(ops, _seen(state, (TOKENS, request.id), (NODES, request.node)), token.author)
                except Conflict:
                    continue  # another node came with it at the same moment, or under this name
                self._log.info("let a node in", node=request.node, role=request.role, address=request.address, token=request.id)
            return Redeemed(cluster=self._vault.cluster, certificate=certificate, ca=ca.pem, rev=rev, again=known)
        raise _busy()

    async def _check_node(self, request: CheckNode, caller: Caller) -> Nothing:
        await self._vault.opened.wait()
        store, _ = self._vault.unlocked()
        listed = _node(store.state, request.node)
        if listed is None or listed.key != request.key:
            raise Forbidden(f"{request.node} is no node of this cluster any more", hint="let it join again")
        return Nothing()

    async def _forget_node(self, request: ForgetNode, caller: Caller) -> Revoked:
        await self._open()
        self._mode()
        if request.node == self._own_node:
            raise Conflict(
                f"{request.node} is this very node", hint="another node has to lead: `piccoloctl leaders switchover kernel`"
            )
        for _ in range(_TRIES):
            state = self._vault.unlocked()[0].state
            token = _token(state, request.token) if request.token else None
            reopened = admission.reopened(token, request.node, _node(state, request.node))
            ops = [delete(NODES, request.node)]
            if reopened is None:
                return Revoked(rev=await self._commit(ops, {}, request.author))
            ops.append(put(TOKENS, request.token, _document(reopened)))
            try:
                seen = _seen(state, (TOKENS, request.token), (NODES, request.node))
                return Revoked(rev=await self._commit(ops, seen, request.author))
            except Conflict:
                continue
        raise _busy()

    # --- what they stand on

    async def _open(self) -> tuple[State, Authority]:
        """Raises Locked, StoreCorrupt, StoreUnavailable, Unavailable while the authority is not made yet."""
        await self._vault.opened.wait()
        store, _ = self._vault.unlocked()
        ca = cluster_ca.find(store.state)
        if ca is None:
            raise Unavailable("the cluster's certificate authority is not made yet", hint="try again in a moment")
        return store.state, ca

    def _mode(self) -> Mode:
        """Raises Conflict for a node alone."""
        mode = cluster_mode.load(self._folder)
        if mode is None:
            raise _alone()
        return mode

    async def _commit(self, ops: Sequence[Op], expect: dict[Key, int], author: str) -> int:
        if self._vault.damage:
            raise StoreCorrupt(self._vault.damage, hint=REPAIR_HINT)
        _, commits = self._vault.unlocked()
        return (await commits.commit(Write(ops, expect, author, "", clock.wall_ms()))).rev


def _alone() -> Conflict:
    return Conflict("this node is alone: there is no cluster to join", hint="make it one: `piccoloctl cluster init`")


def _busy() -> Busy:
    return Busy("the list of nodes changes too often", hint="try again")


def _joined(request: Redeem, key: str, now_ms: int) -> NodeRecord:
    return NodeRecord(
        role=request.role,
        address=request.address,
        key=key,
        joined_ms=now_ms,
        token=request.id,
        rpc=request.rpc,
        client_url=request.client_url,
        peer_url=request.peer_url,
    )


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise Invalid(f"{text[:80]!r} is not an IP address", hint="see node.address of the node that joins") from None


def _check_places(request: Redeem) -> None:
    for name in ("rpc", "client_url", "peer_url"):
        text: str = getattr(request, name)
        if not text.isprintable() or len(text) > _URL_BYTES:
            raise Invalid(f"{name} is not where a node can be reached", hint="see node.address of the node that joins")


def _view(id: str, token: TokenRecord, now_ms: int) -> JoinTokenView:
    return JoinTokenView(
        id=id,
        role=token.role,
        state=token.state(now_ms),
        node=token.node,
        author=token.author,
        created_ms=token.created_ms,
        expires_ms=token.expires_ms,
    )


def _node(state: State, name: str) -> NodeRecord | None:
    return admission.record(NodeRecord, state.get(NODES, name), f"{NODES}/{name}")


def _token(state: State, id: str) -> TokenRecord | None:
    return admission.record(TokenRecord, state.get(TOKENS, id), f"{TOKENS}/{id}")


def _tokens(state: State) -> dict[str, TokenRecord]:
    found = {id: admission.record(TokenRecord, each, f"{TOKENS}/{id}") for id, each in state.list(TOKENS).items()}
    return {id: each for id, each in found.items() if each is not None}


def _seen(state: State, *keys: Key) -> dict[Key, int]:
    """What was decided on must still be so at the commit."""
    found = {key: state.get(*key) for key in keys}
    return {key: ABSENT if each is None else each.generation for key, each in found.items()}


def _chosen(state: State, request: IssueCertificate) -> list[Op]:
    """The setting with which the cluster begins, beside those that the node had alone."""
    found = state.get(*SETTINGS)
    before: dict[str, Any] = msgspec.msgpack.decode(found.body) if found is not None else {}
    if request.auto_unlock is None or before.get("auto_unlock") == request.auto_unlock.value:
        return []
    return [put(*SETTINGS, {**before, "auto_unlock": request.auto_unlock.value})]


def _document(record: NodeRecord | TokenRecord) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(record)
    return built
