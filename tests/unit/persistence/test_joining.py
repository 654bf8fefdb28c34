"""Who gets into the cluster, and what each refusal says: the commands on a real store, each change one entry of its log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from piccolod import clock, cluster_mode
from piccolod.bus.caller import Caller
from piccolod.errors import (
    Conflict,
    Exists,
    Forbidden,
    Invalid,
    Locked,
    NotFound,
    NotLeader,
    PiccoloError,
    TooMany,
    Unauthenticated,
)
from piccolod.paths import Paths
from piccolod.pki import authority as pki
from piccolod.pki import token as tokens
from piccolod.pki.authority import make_key, make_request
from piccolod.pki.identity import Identity, Role
from piccolod.pki.token import JoinToken
from piccolod.protocol.joining import (
    CheckNode,
    CreateJoinToken,
    ForgetNode,
    GetJoinTokens,
    IssueCertificate,
    Issued,
    JoinTokenView,
    Redeem,
    Redeemed,
    RevokeJoinToken,
    TokenState,
)
from piccolod.protocol.unlocking import AutoUnlock
from services.persistence import admission, cluster_ca
from services.persistence.admission import NODES, TOKENS, NodeRecord
from services.persistence.joining import JoiningCommands
from services.persistence.ledger import Write
from services.persistence.state import ABSENT, put
from services.persistence.vault import Vault

from .test_vault import PASSWORD, start

HOUR_MS = 3_600_000


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


@pytest.fixture()
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the wall clock forward."""

    def go(hours: float) -> None:
        at = clock.wall_ms() + round(hours * HOUR_MS)
        monkeypatch.setattr(clock, "wall_ms", lambda: at)

    return go


# --- a node comes


def test_a_token_lets_one_node_in_by_one_entry_that_uses_it_up(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token, n2 = await desk.token(), Machine("n2")
        before = desk.rev
        reply: Redeemed = await desk.ask(n2.redeem(token))
        assert desk.rev == before + 1 == reply.rev, "one commit"
        assert reply.cluster == desk.vault.cluster and not reply.again
        assert pki.read(reply.certificate).identity == Identity(desk.vault.cluster, "n2")
        assert pki.signed_by(reply.certificate, reply.ca) and pki.belong_together(reply.certificate, n2.key)
        assert pki.fingerprint_of(reply.ca) == token.fingerprint, "the authority that the token names"
        listed = desk.node("n2")
        assert listed is not None and listed.key == pki.key_of_request(n2.csr)
        assert (listed.role, listed.address, listed.rpc, listed.token) == ("member", "10.77.0.2", "10.77.0.2:7444", token.id)
        used = await desk.known(token)
        assert (used.state, used.node) == (TokenState.USED, "n2")

    with_desk(tmp_path, work)


def test_a_node_whose_answer_was_lost_asks_again_and_gets_another_certificate(tmp_path: Path, later: Any) -> None:
    async def work(desk: Desk) -> None:
        token, n2 = await desk.token(), Machine("n2")
        await desk.ask(n2.redeem(token))
        before = desk.rev
        later(2)
        again: Redeemed = await desk.ask(n2.redeem(token))
        assert desk.rev == before, "nothing was written"
        assert again.again and pki.belong_together(again.certificate, n2.key)

    with_desk(tmp_path, work)


def test_a_node_that_etcd_did_not_take_has_its_token_open_again_until_it_expires(tmp_path: Path, later: Any) -> None:
    async def work(desk: Desk) -> None:
        token, n2 = await desk.token(), Machine("n2")
        await desk.ask(n2.redeem(token))
        before = desk.rev
        await desk.ask(ForgetNode(node="n2", author="node:n2", token=token.id))
        assert desk.rev == before + 1 and desk.node("n2") is None, "one commit"
        assert (await desk.known(token)).state is TokenState.OPEN
        await desk.ask(Machine("n3").redeem(token))
        await desk.ask(ForgetNode(node="n3", author="admin"))
        assert (await desk.known(token)).state is TokenState.USED, "one that was taken out must not come back with it"
        await desk.ask(ForgetNode(node="n3", author="node:n3", token=token.id))
        assert (await desk.known(token)).state is TokenState.USED
        later(2)
        assert type(await desk.refused(n2.redeem(token))) is Conflict

    with_desk(tmp_path, work)


@pytest.mark.parametrize(
    ("etcd", "wrong", "right", "words"),
    [("managed", 7, 0, 'n2 has etcd.mode = "external"'), ("external", 0, 7, "n2 would bring a member of etcd of its own")],
)
def test_a_node_that_keeps_etcd_another_way_is_refused_and_its_token_stays(
    tmp_path: Path, etcd: cluster_mode.Keeping, wrong: int, right: int, words: str
) -> None:
    async def work(desk: Desk) -> None:
        desk.enter_cluster(etcd)
        token, n2 = await desk.token(), Machine("n2")
        refusal = await desk.refused(n2.redeem(token, etcd_id=wrong))
        assert isinstance(refusal, Conflict) and words in refusal.detail and "on n2: [etcd]" in refusal.hint
        nobody = await desk.refused(n2.redeem(tokens.issue(token.fingerprint), etcd_id=wrong))
        assert isinstance(nobody, Unauthenticated), "who has no token is told nothing of it"
        await desk.ask(n2.redeem(token, etcd_id=right))
        assert desk.node("n2") is not None

    with_desk(tmp_path, work)


def test_where_its_owner_keeps_etcd_no_token_is_made_for_a_witness(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        desk.enter_cluster("external")
        refusal = await desk.refused(CreateJoinToken(role=Role.WITNESS, author="admin"))
        assert isinstance(refusal, Invalid) and "a witness votes" in refusal.detail
        await desk.token()

    with_desk(tmp_path, work)


def test_of_two_nodes_at_once_with_one_token_one_is_let_in(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token, before = await desk.token(), desk.rev
        asked = [desk.ask(Machine(name).redeem(token)) for name in ("n2", "n3", "n4")]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert len([each for each in answers if isinstance(each, Redeemed)]) == 1
        assert all(isinstance(each, Conflict | Redeemed) for each in answers), answers
        assert len(desk.state.list(NODES)) == 1 and desk.rev == before + 1

    with_desk(tmp_path, work)


def test_each_refusal_has_its_own_message(tmp_path: Path, later: Any) -> None:
    async def work(desk: Desk) -> None:
        used, revoked, role = await desk.token(), await desk.token(), await desk.token(Role.WITNESS)
        await desk.ask(Machine("n2").redeem(used))
        await desk.ask(RevokeJoinToken(id=revoked.id, author="admin"))
        spare, short = await desk.token(), await desk.token(ttl_s=60.0)
        wrong = msgspec.structs.replace(spare, secret=tokens.issue(spare.fingerprint).secret)
        unknown = tokens.issue(spare.fingerprint)
        n3 = Machine("n3")
        refusals = {
            "wrong": (n3.redeem(wrong), Unauthenticated, "not one of this cluster"),
            "unknown": (n3.redeem(unknown), Unauthenticated, "not one of this cluster"),
            "used": (n3.redeem(used), Conflict, "used already, by n2"),
            "used, by its own node with another key": (Machine("n2").redeem(used), Conflict, "used already, by n2"),
            "revoked": (n3.redeem(revoked), Forbidden, "was revoked"),
            "role": (n3.redeem(role), Forbidden, "is for a witness"),
            "name": (Machine("n2").redeem(spare), Exists, "n2 is the name of a node"),
            "no name": (n3.redeem(spare, node="N 3"), Invalid, "not the name of a node"),
            "no address": (n3.redeem(spare, address="somewhere"), Invalid, "not an IP address"),
            "no request": (n3.redeem(spare, csr="x"), Invalid, "not a certificate request"),
        }  # fmt: skip
        messages, hints = set(), {}
        for what, (request, kind, message) in refusals.items():
            refusal = await desk.refused(request)
            assert type(refusal) is kind and message in refusal.detail, (what, refusal)
            messages.add(refusal.detail)
            hints[what] = refusal.hint
        assert "nodes remove n2" in hints["used, by its own node with another key"] and "nodes remove" not in hints["used"]
        assert "join with --witness" in hints["role"] and "--role" not in hints["role"]
        assert len(messages) == len(refusals) - 2, "a wrong secret is not told from an unknown id"
        later(0.1)
        expired = await desk.refused(n3.redeem(short))
        assert type(expired) is Forbidden and "has expired" in expired.detail
        await desk.ask(n3.redeem(spare))

    with_desk(tmp_path, work)


def test_what_became_of_a_token_is_told_only_to_who_has_its_secret(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token = await desk.token()
        await desk.ask(Machine("n2").redeem(token))
        guess = msgspec.structs.replace(token, secret="a" * 32)
        assert "n2" not in (await desk.refused(Machine("n3").redeem(guess))).detail

    with_desk(tmp_path, work)


def test_a_node_that_does_not_lead_lets_nobody_in(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token = await desk.token()
        gate: Any = desk.vault.unlocked()[1]._gate  # type: ignore[attr-defined]
        gate.shut_after = 0
        for request in (
            Machine("n2").redeem(token), CreateJoinToken(author="admin"), RevokeJoinToken(id=token.id, author="admin")
        ):  # fmt: skip
            assert isinstance(await desk.refused(request), NotLeader)
        assert desk.node("n2") is None and (await desk.known(token)).state is TokenState.OPEN

    with_desk(tmp_path, work)


# --- tokens


def test_a_token_lives_an_hour_and_a_day_at_most(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        made = await desk.ask(CreateJoinToken(author="admin"))
        assert abs(made.expires_ms - clock.wall_ms() - HOUR_MS) < 60_000 and made.token not in repr(made)
        day = await desk.ask(CreateJoinToken(author="admin", ttl_s=86_400.0))
        assert abs(day.expires_ms - clock.wall_ms() - 24 * HOUR_MS) < 60_000
        for ttl_s in (86_401.0, 59.0, 0.0, -1.0, float("nan"), float("inf")):
            assert type(await desk.refused(CreateJoinToken(author="admin", ttl_s=ttl_s))) is Invalid

    with_desk(tmp_path, work)


def test_no_secret_of_a_token_rests_anywhere(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token = await desk.token()
        document = desk.state.get(TOKENS, token.id)
        assert document is not None and token.secret.encode() not in document.body
        assert token.secret not in str(await desk.ask(GetJoinTokens()))

    with_desk(tmp_path, work)


def test_the_list_says_what_became_of_each_token_and_forgets_after_a_week(tmp_path: Path, later: Any) -> None:
    async def work(desk: Desk) -> None:
        used, revoked, expired = await desk.token(), await desk.token(), await desk.token(ttl_s=60.0)
        await desk.ask(Machine("n2").redeem(used))
        await desk.ask(RevokeJoinToken(id=revoked.id, author="admin"))
        before = desk.rev
        await desk.ask(RevokeJoinToken(id=revoked.id, author="admin"))
        assert desk.rev == before, "revoking again changes nothing"
        later(0.5)
        fresh = await desk.token(Role.WITNESS)
        found = {each.id: (each.state.value, each.role.value) for each in (await desk.ask(GetJoinTokens())).tokens}
        assert found == {
            used.id: ("used", "member"), revoked.id: ("revoked", "member"), expired.id: ("expired", "member"),
            fresh.id: ("open", "witness"),
        }  # fmt: skip
        assert (await desk.ask(GetJoinTokens())).tokens[0].id == fresh.id, "the newest first"
        later(8 * 24)
        last = await desk.token()
        assert [each.id for each in (await desk.ask(GetJoinTokens())).tokens] == [last.id]

    with_desk(tmp_path, work)


def test_a_token_that_is_unknown_or_used_cannot_be_revoked(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token = await desk.token()
        assert type(await desk.refused(RevokeJoinToken(id="00000000", author="admin"))) is NotFound
        await desk.ask(Machine("n2").redeem(token))
        refusal = await desk.refused(RevokeJoinToken(id=token.id, author="admin"))
        assert type(refusal) is Conflict and "nodes remove n2" in refusal.hint

    with_desk(tmp_path, work)


def test_open_tokens_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "OPEN_MOST", 2)

    async def work(desk: Desk) -> None:
        first = await desk.token()
        await desk.token()
        assert type(await desk.refused(CreateJoinToken(author="admin"))) is TooMany
        await desk.ask(RevokeJoinToken(id=first.id, author="admin"))
        await desk.token()

    with_desk(tmp_path, work)


def test_a_node_alone_has_nothing_to_join(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        for request in (CreateJoinToken(author="admin"), Machine("n2").redeem(tokens.issue("0" * 64))):
            refusal = await desk.refused(request)
            assert type(refusal) is Conflict and "cluster init" in refusal.hint

    with_desk(tmp_path, work, member=False)


# --- certificates


def test_cluster_init_makes_this_node_the_first_and_only_one(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        await desk.commit(NODES, "old", {"role": "member", "address": "10.1.1.1", "key": "x", "joined_ms": 1})
        n1, before = Machine("n1", "10.77.0.1"), desk.rev
        reply: Issued = await desk.ask(n1.certificate(), by="consensus")
        assert desk.rev == before + 1
        assert list(desk.state.list(NODES)) == ["n1"], "what an init that broke off has left is gone"
        assert pki.read(reply.certificate).identity == Identity(desk.vault.cluster, "n1")
        await desk.ask(n1.certificate(), by="consensus")
        assert desk.rev == before + 1, "the same again changes nothing"
        another = Machine("n1", "10.77.0.1")
        await desk.ask(another.certificate(), by="consensus")
        listed = desk.node("n1")
        assert listed is not None and listed.key == pki.key_of_request(another.csr), "an init that begins again has a new key"

    with_desk(tmp_path, work, member=False)


@pytest.mark.parametrize("chosen", list(AutoUnlock))
def test_the_first_certificate_brings_the_setting_with_which_the_cluster_begins(tmp_path: Path, chosen: AutoUnlock) -> None:
    async def work(desk: Desk) -> None:
        await desk.commit("settings", "cluster", {"title": "Home"})
        n1, before = Machine("n1", "10.77.0.1"), desk.rev
        for _ in range(2):
            await desk.ask(n1.certificate(auto_unlock=chosen), by="consensus")
            assert desk.rev == before + 1, "in the same entry, and the same again changes nothing"
        body = msgspec.msgpack.decode(desk.state.get("settings", "cluster").body)
        assert body == {"title": "Home", "auto_unlock": chosen.value}

    with_desk(tmp_path, work, member=False)


@pytest.mark.parametrize(("name", "by"), [("n1", "api"), ("n2", "consensus")])
def test_a_node_alone_signs_for_itself_alone_and_for_its_consensus_alone(tmp_path: Path, name: str, by: str) -> None:
    async def work(desk: Desk) -> None:
        assert type(await desk.refused(Machine(name).certificate(), by)) is Conflict

    with_desk(tmp_path, work, member=False)


def test_a_renewal_is_for_who_is_listed_with_this_key_and_role_and_commits_nothing(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        n2 = Machine("n2")
        first: Redeemed = await desk.ask(n2.redeem(await desk.token()))
        before = desk.rev
        gate: Any = desk.vault.unlocked()[1]._gate  # type: ignore[attr-defined]
        gate.shut_after = 0  # no leader is needed: every unlocked member can sign, or all could be locked out at once
        renewed: Issued = await desk.ask(n2.certificate(address="10.99.99.99"))
        assert desk.rev == before and renewed.certificate != first.certificate
        assert pki.read(renewed.certificate).key == pki.read(first.certificate).key
        assert _addresses(renewed.certificate) == ["10.77.0.2", "127.0.0.1"], "as it is listed, not as it says"
        assert type(await desk.refused(Machine("n2").certificate())) is Forbidden, "another key"
        assert type(await desk.refused(Machine("n3").certificate())) is NotFound
        witness = n2.certificate(role=Role.WITNESS)
        assert "listed as a member" in (await desk.refused(witness)).detail

    with_desk(tmp_path, work)


def test_a_node_that_was_removed_gets_no_certificate_and_its_name_is_free(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token, n2 = await desk.token(), Machine("n2")
        await desk.ask(n2.redeem(token))
        await desk.ask(ForgetNode(node="n2", author="admin"))
        assert desk.node("n2") is None
        assert type(await desk.refused(n2.certificate())) is NotFound
        assert type(await desk.refused(CheckNode(node="n2", key=pki.key_of_request(n2.csr)))) is Forbidden
        assert type(await desk.refused(n2.redeem(token))) is Conflict, "its token is used up all the same"
        anew = Machine("n2")
        await desk.ask(anew.redeem(await desk.token()))
        await desk.ask(CheckNode(node="n2", key=pki.key_of_request(anew.csr)))
        assert type(await desk.refused(CheckNode(node="n2", key=pki.key_of_request(n2.csr)))) is Forbidden
        assert type(await desk.refused(n2.certificate())) is Forbidden, "the former one has another key"
        before = desk.rev
        await desk.ask(ForgetNode(node="n7", author="admin"))
        assert desk.rev == before
        assert type(await desk.refused(ForgetNode(node="n1", author="admin"))) is Conflict

    with_desk(tmp_path, work)


def _addresses(certificate: str) -> list[str]:
    from cryptography import x509

    parsed = x509.load_pem_x509_certificate(certificate.encode())
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each) for each in names.get_values_for_type(x509.IPAddress)]


def test_a_locked_node_signs_nothing_and_knows_no_token(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        token = await desk.token()
        await desk.vault.lock()
        for request in (Machine("n2").redeem(token), Machine("n1").certificate(), GetJoinTokens()):
            with pytest.raises(Locked):
                await desk.ask(request)

    with_desk(tmp_path, work)
