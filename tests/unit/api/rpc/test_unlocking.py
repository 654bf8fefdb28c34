"""POST /unlock and the loop that asks for it: who is let through to persistence, and what a locked node tells."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from piccolod.errors import Conflict, Forbidden, Locked
from piccolod.pki import channel, proof
from piccolod.pki.authority import make_key
from piccolod.pki.identity import Role
from piccolod.protocol.events import LockStateChanged
from piccolod.protocol.unlocking import PURPOSE, AskText, AskUnlock, GiveKey, SealedKey, SignedAsk, TakeKey
from services.api.rpc.service import Rpc
from tests.node import until
from tests.unit.api.node import Node
from tests.unit.api.rpc.cluster import Cluster, codes, formed

ASK = b"an ask that persistence made"


@pytest.fixture
def pair() -> Iterator[Cluster]:
    """n1 and n2 give what they are asked for, n3 asks."""
    with formed("n1", "n2", "n3") as cluster:
        cluster.elect("n1")
        for name in ("n1", "n2"):
            cluster[name].modules.replies[GiveKey] = given(name)
        cluster["n3"].modules.replies[AskUnlock] = AskText(ASK)
        known = {
            name: {"address": "", "client_url": "", "rpc": f"{cluster.address(name)}:{cluster.rpc_port}", "role": role}
            for name, role in (("n3", "member"), ("n8", "witness"), ("n1", "member"), ("n2", "member"))
        }
        (cluster["n3"].module.paths.cluster / "members.json").write_text(json.dumps(known))
        yield cluster


def given(name: str) -> SealedKey:
    return SealedKey(giver=name, public=b"p", nonce=b"n", sealed=b"s")


def rpc(node: Node) -> Rpc:
    assert node.service._rpc is not None
    return node.service._rpc


def ask_round(node: Node) -> bool:
    return asyncio.run_coroutine_threadsafe(rpc(node).unlocking.once(), node.loop).result(30)


def why(node: Node) -> str:
    return node.service._core.seen.locked_because


def test_the_first_member_that_gives_the_key_is_enough(pair: Cluster) -> None:
    assert ask_round(pair["n3"])
    (request,) = pair["n1"].modules.asked(GiveKey)
    signed = request.signed
    assert signed.ask == ASK
    assert proof.signer(signed.key, PURPOSE, signed.ask, signed.signature) == pair.listed["n3"]
    assert pair["n2"].modules.asked(GiveKey) == []
    assert [each.key for each in pair["n3"].modules.asked(TakeKey)] == [given("n1")]
    assert codes(pair["n1"], "POST rpc/unlock") == [("node:n3", 200, "")]
    assert why(pair["n3"]) == ""


def test_one_that_is_locked_or_refuses_is_followed_by_the_next(pair: Cluster) -> None:
    pair["n1"].modules.locked = True
    assert ask_round(pair["n3"])
    assert [each.key.giver for each in pair["n3"].modules.asked(TakeKey)] == ["n2"]
    assert codes(pair["n1"], "POST rpc/unlock") == [("node:n3", 423, "locked")]


def test_when_none_gives_it_the_reasons_of_all_are_told(pair: Cluster) -> None:
    pair["n1"].modules.locked = True
    pair["n2"].modules.fail_kinds[GiveKey] = Forbidden("the cluster's setting auto_unlock is never")
    pair["n3"].tell(LockStateChanged(locked=True, initialized=True, rev=1))
    assert not ask_round(pair["n3"])
    assert why(pair["n3"]).startswith("no member has unlocked it: n1: ")
    assert "n2: the cluster's setting auto_unlock is never" in why(pair["n3"])
    with pair["n3"].unix() as client:
        assert "auto_unlock is never" in client.get("/health/detail").json()["components"]["lock"]["reason"]


def test_an_answer_in_anothers_name_or_one_that_does_not_fit_is_not_used(pair: Cluster) -> None:
    pair["n1"].modules.replies[GiveKey] = given("n2")
    pair["n3"].modules.fail_kinds[TakeKey] = Forbidden("the key does not open the keyset")
    assert not ask_round(pair["n3"])
    assert [each.key.giver for each in pair["n3"].modules.asked(TakeKey)] == ["n2"], "n2's own answer alone"
    assert "n1: it answered in the name of n2" in why(pair["n3"])


def test_a_node_that_was_locked_on_purpose_asks_nobody(pair: Cluster) -> None:
    pair["n3"].modules.fail_kinds[AskUnlock] = Conflict("it was locked on purpose: no peer unlocks it")
    assert not ask_round(pair["n3"])
    assert why(pair["n3"]) == "it was locked on purpose: no peer unlocks it"
    assert pair["n1"].modules.asked(GiveKey) == pair["n2"].modules.asked(GiveKey) == []


def test_it_asks_by_itself_when_it_is_locked_and_again_at_the_news_of_a_leader(pair: Cluster) -> None:
    for name in ("n1", "n2"):
        pair[name].modules.fail_kinds[GiveKey] = Locked("locked")
    pair["n3"].tell(LockStateChanged(locked=True, initialized=True, rev=1))
    until(lambda: pair["n2"].modules.asked(GiveKey), "it asked")
    for name in ("n1", "n2"):
        pair[name].modules.fail_kinds.clear()
    pair.elect("n2")
    until(lambda: pair["n3"].modules.asked(TakeKey), "it was given the key")


# --- who is let through


class Caller:
    """n7 calls n1, with whatever certificate a test gives it."""

    def __init__(self, cluster: Cluster, folder: Path, *, listed: bool = True, role: Role = Role.MEMBER) -> None:
        self.key = make_key()
        if listed:
            cluster.list_node("n7", self.key)
        files = folder / "n7.pem", folder / "n7.key", folder / "ca.pem"
        files[0].write_text(cluster.certificate("n7", key=self.key, role=role))
        files[1].write_bytes(self.key)
        files[2].write_text(cluster.authority.pem)
        self._tls: ssl.SSLContext = channel.client_context(*files)
        self._at = cluster.address("n1"), cluster.rpc_port

    def ask(self, key: bytes | None = None) -> tuple[int, Any]:
        public, signature = proof.sign(key or self.key, PURPOSE, ASK)
        body = msgspec.msgpack.encode(SignedAsk(ask=ASK, key=public, signature=signature))
        return self.post(body)

    def post(self, body: bytes, path: str = "/unlock") -> tuple[int, Any]:
        connection = http.client.HTTPSConnection(*self._at, context=self._tls, timeout=10)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/x-msgpack"})
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, content if answer.status == 200 else json.loads(content)
        finally:
            connection.close()


def test_a_member_with_its_own_ask_is_let_through(pair: Cluster, tmp_path: Path) -> None:
    status, content = Caller(pair, tmp_path).ask()
    assert (status, msgspec.msgpack.decode(content, type=SealedKey)) == (200, given("n1"))


def test_a_witness_is_not(pair: Cluster, tmp_path: Path) -> None:
    status, document = Caller(pair, tmp_path, role=Role.WITNESS).ask()
    assert (status, document["detail"]) == (403, "n7 is a witness: this is for a member")
    assert pair["n1"].modules.asked(GiveKey) == []


def test_one_that_was_removed_is_not(pair: Cluster, tmp_path: Path) -> None:
    status, document = Caller(pair, tmp_path, listed=False).ask()
    assert (status, document["code"]) == (403, "forbidden")
    assert pair["n1"].modules.asked(GiveKey) == []


def test_an_ask_that_another_node_signed_and_what_is_none_are_not(pair: Cluster, tmp_path: Path) -> None:
    caller = Caller(pair, tmp_path)
    assert caller.ask(key=pair.keys["n2"])[0] == 403
    assert caller.post(b"garbage")[0] == 400
    assert pair["n1"].modules.asked(GiveKey) == []
