"""Who is let through the rpc server of a member, and what the others are told: real TLS on its real port."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from piccolod.errors import Busy
from piccolod.pki import authority as pki
from piccolod.pki import channel
from piccolod.pki.authority import Authority, make_key, make_request
from piccolod.pki.identity import Role
from piccolod.protocol.joining import IssueCertificate
from services.api.rpc.wire import Forwarded
from tests.unit.api.node import BASE
from tests.unit.api.rpc.cluster import Cluster, codes, formed

FORWARD = msgspec.msgpack.encode(
    Forwarded(
        method="PUT", path=f"{BASE}/settings", query=b"", headers=[(b"content-type", b"application/json")],
        body=b'{"title": "Home"}', as_root=True, source="uid:0", secure=False, request_id="abc",
    )
)  # fmt: skip
RENEW = json.dumps({"csr": make_request(make_key())}).encode()


@pytest.fixture
def one() -> Iterator[Cluster]:
    with formed("n1") as cluster:
        cluster.elect("n1")
        yield cluster


@pytest.fixture
def caller(one: Cluster, tmp_path: Path) -> Caller:
    return Caller(one, tmp_path)


class Caller:
    """A node n2 that calls n1, with whatever certificate a test gives it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.key = make_key()
        self._folder = folder
        self._ca = folder / "ca.pem"
        self._ca.write_text(cluster.authority.pem)

    def context(self, *, key: bytes | None = None, listed: bool = True, **certificate: Any) -> ssl.SSLContext:
        if listed:
            self.cluster.list_node("n2", self.key)
        own = key or self.key
        cert_file, key_file = self._folder / "n2.pem", self._folder / "n2.key"
        cert_file.write_text(self.cluster.certificate("n2", key=own, **certificate))
        key_file.write_bytes(own)
        return channel.client_context(cert_file, key_file, self._ca)

    def post(self, path: str, body: bytes, tls: ssl.SSLContext) -> tuple[int, Any]:
        connection = http.client.HTTPSConnection(self.cluster.address("n1"), self.cluster.rpc_port, context=tls, timeout=10)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if answer.status != 200 else content
        finally:
            connection.close()

    def refused(self, path: str, body: bytes, tls: ssl.SSLContext) -> tuple[int, str, str]:
        status, document = self.post(path, body, tls)
        assert document["status"] == status
        return status, document["code"], document["detail"]


def test_a_listed_member_forwards_and_renews(caller: Caller) -> None:
    tls = caller.context()
    assert caller.post("/forward", FORWARD, tls)[0] == 200
    assert caller.post("/renew", RENEW, tls)[0] == 200


def test_without_a_certificate_only_the_door_is_open(caller: Caller, one: Cluster) -> None:
    bare = channel.pinned_context(one.authority.fingerprint)
    for path, body in (("/forward", FORWARD), ("/renew", RENEW)):
        status, code, detail = caller.refused(path, body, bare)
        assert (status, code) == (401, "unauthenticated") and "no certificate" in detail
    assert caller.refused("/join", b"", bare)[1] == "invalid"
    assert codes(one["n1"], "POST rpc/forward") == [("nobody", 401, "unauthenticated")]


def test_tls_1_2_is_not_spoken(caller: Caller) -> None:
    old = caller.context()
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        caller.post("/forward", FORWARD, old)


def test_a_certificate_of_a_foreign_authority_gets_no_answer_at_all(caller: Caller, one: Cluster) -> None:
    foreign = caller.context(by=Authority.create("c"))
    for path, body in (("/forward", FORWARD), ("/renew", RENEW), ("/join", b"{}")):
        with pytest.raises((ssl.SSLError, OSError)):
            caller.post(path, body, foreign)
    assert one["n1"].modules.asked(IssueCertificate) == []


def test_a_node_of_another_cluster_is_refused(caller: Caller) -> None:
    """Signed by the same authority: only the identity tells it apart."""
    status, code, detail = caller.refused("/forward", FORWARD, caller.context(cluster="another"))
    assert (status, code) == (403, "forbidden") and "another cluster" in detail


def test_a_witness_may_renew_and_not_forward(caller: Caller) -> None:
    witness = caller.context(role=Role.WITNESS)
    status, _, detail = caller.refused("/forward", FORWARD, witness)
    assert status == 403 and "n2 is a witness" in detail
    assert caller.post("/renew", RENEW, witness)[0] == 200


def test_a_node_that_was_removed_or_has_another_key_is_refused_while_its_certificate_lasts(caller: Caller) -> None:
    assert "n2 is no node of this cluster any more" in caller.refused("/forward", FORWARD, caller.context(listed=False))[2]
    former = caller.context(key=make_key())  # a machine of that name before, from a disk that somebody has
    assert caller.refused("/forward", FORWARD, former)[:2] == (403, "forbidden")


def test_a_certificate_that_has_ended_is_good_for_its_renewal_alone(
    caller: Caller, one: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pki, "FLOOR", datetime(2001, 1, 1, tzinfo=UTC))
    ended = caller.context(now_s=time.time() - 91 * 86400)
    status, code, detail = caller.refused("/forward", FORWARD, ended)
    assert (status, code) == (401, "unauthenticated") and "has ended" in detail
    assert caller.post("/renew", RENEW, ended)[0] == 200
    (asked,) = one["n1"].modules.asked(IssueCertificate)
    assert (asked.node, asked.role) == ("n2", Role.MEMBER)


def test_a_locked_member_cannot_tell_who_is_listed(caller: Caller, one: Cluster) -> None:
    tls = caller.context()
    one["n1"].modules.locked = True
    assert caller.refused("/forward", FORWARD, tls)[:2] == (423, "locked")


def test_bodies_are_bounded(caller: Caller) -> None:
    tls = caller.context()
    for path, size in (("/forward", 2 << 20), ("/renew", 32 << 10), ("/join", 32 << 10)):
        status, code, _ = caller.refused(path, b"x" * size, tls)
        assert (status, code) == (413, "too_large")


@pytest.mark.parametrize(
    "change",
    [{"method": "GET"}, {"path": "/metrics"}, {"request_id": ""}, {"request_id": "a\r\nb"}],
)
def test_only_writes_of_the_api_are_forwarded(caller: Caller, change: dict[str, Any]) -> None:
    asked = msgspec.structs.replace(msgspec.msgpack.decode(FORWARD, type=Forwarded), **change)
    assert caller.refused("/forward", msgspec.msgpack.encode(asked), caller.context())[1] == "invalid"


def test_what_is_no_call_is_refused(caller: Caller, one: Cluster) -> None:
    tls = caller.context()
    assert caller.refused("/forward", b"garbage", tls)[1] == "invalid"
    assert caller.refused("/renew", b"\xff", tls)[1] == "invalid"
    assert caller.refused("/nothing", b"", tls)[1] == "not_supported", "it may be a newer node's"
    assert caller.refused(f"{BASE}/settings", b"", tls)[1] == "not_supported", "the API itself is not served here"


def test_a_member_whose_port_is_taken_says_so_and_listens_when_it_is_free() -> None:
    with formed("n1", refuse_listen=Busy("a process has the port")) as cluster:
        node = cluster["n1"]
        assert any("other nodes cannot call this one" in reason for _, reason in node.module.healths)
        node.module.refuse_listen = None
        give_up_at = time.monotonic() + 10
        while node.module.healths[-1] != ("OK", ""):
            assert time.monotonic() < give_up_at, node.module.healths
            time.sleep(0.05)


def test_a_node_alone_loads_nothing_of_it() -> None:
    code = (
        "import sys, services.api.service\n"
        "loaded = [n for n in sys.modules if n.startswith(('services.api.rpc', 'cryptography', 'piccolod.pki.authority'))]\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
