"""Who gets into the cluster, and what each refusal says: the commands on a real store, each change one entry of its log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from piccolod import cluster_mode
from piccolod.errors import (
    Conflict,
    Exists,
    Forbidden,
    Invalid,
    NotLeader,
    Unauthenticated,
)
from piccolod.pki import authority as pki
from piccolod.pki import token as tokens
from piccolod.pki.identity import Identity, Role
from piccolod.protocol.joining import (
    CreateJoinToken,
    ForgetNode,
    Redeemed,
    RevokeJoinToken,
    TokenState,
)
from services.persistence.admission import NODES

from .desk import Desk, Machine, with_desk


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
