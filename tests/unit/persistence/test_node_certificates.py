"""Certificates of nodes: the first one, renewals, and who gets none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from piccolod.errors import (
    Conflict,
    Forbidden,
    Locked,
    NotFound,
)
from piccolod.pki import authority as pki
from piccolod.pki.identity import Identity, Role
from piccolod.protocol.joining import (
    CheckNode,
    ForgetNode,
    GetJoinTokens,
    Issued,
    Redeemed,
)
from piccolod.protocol.unlocking import AutoUnlock
from services.persistence.admission import NODES

from .desk import Desk, Machine, with_desk


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
