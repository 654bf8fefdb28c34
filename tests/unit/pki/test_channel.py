"""Real handshakes. In TLS 1.3 a client is done before the server has looked at its certificate: the server's word counts."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from piccolod.errors import Unauthenticated, Unavailable
from piccolod.pki import authority as pki
from piccolod.pki import channel
from piccolod.pki.authority import Authority
from piccolod.pki.identity import Identity, Role

from .conftest import CLUSTER, NodeMaker, handshake


@pytest.fixture()
def old(monkeypatch: pytest.MonkeyPatch) -> float:
    """A time to sign at, so that the certificate has ended now."""
    from datetime import UTC, datetime

    monkeypatch.setattr(pki, "FLOOR", datetime(2001, 1, 1, tzinfo=UTC))
    return time.time() - 91 * 86400


def test_both_sides_know_who_is_at_the_other_end(node: NodeMaker) -> None:
    n1, n2 = node("n1"), node("n2", role=Role.WITNESS)
    server, client = handshake(n1.server(), n2.client())
    assert channel.peer(server) == Identity(CLUSTER, "n2", Role.WITNESS)
    assert channel.peer(client) == Identity(CLUSTER, "n1", Role.MEMBER)
    assert server.version() == "TLSv1.3"
    assert channel.peer_key(server) == pki.read(n2.cert.read_text()).key


@pytest.mark.parametrize("name", ["n", "n" * 50])
@pytest.mark.parametrize("address", ["10.77.0.1", "fd00::1", "a." * 126 + "b"])
def test_the_key_of_a_certificate_is_found_without_a_library(authority: Authority, name: str, address: str) -> None:
    for _ in range(8):
        request = pki.make_request(pki.make_key())
        signed = authority.sign(request, Identity(CLUSTER, name), address, time.time())
        found = channel._public_key(ssl.PEM_cert_to_DER_cert(signed))
        assert hashlib.sha256(found).hexdigest() == pki.read(signed).key == pki.key_of_request(request)


def test_tls_1_2_is_refused_by_either_side(node: NodeMaker) -> None:
    n1, n2 = node("n1"), node("n2")
    for side in ("client", "server"):
        server, client = n1.server(), n2.client()
        old = client if side == "client" else server
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|WRONG_SSL_VERSION"):
            handshake(server, client)


def test_a_certificate_of_another_authority_is_refused_by_either_side(node: NodeMaker, authority: Authority) -> None:
    n1, foreign = node("n1"), Authority.create(CLUSTER)
    stranger = node("n2", by=foreign, trusts=authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(n1.server(), stranger.client())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stranger.server(), n1.client())


def test_a_member_must_show_a_certificate_where_one_is_wanted(node: NodeMaker) -> None:
    n1 = node("n1")
    bare = channel.pinned_context(pki.fingerprint_of(n1.ca.read_text()))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(n1.server(), bare)
    server, client = handshake(n1.server(require_client=False), bare)
    assert client.version() == "TLSv1.3"
    with pytest.raises(Unauthenticated, match="no certificate"):
        channel.peer(server)


def test_a_certificate_that_has_ended_is_refused(node: NodeMaker, old: float) -> None:
    n1, late = node("n1"), node("n2", signed_s=old)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(n1.server(), late.client())
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(late.server(), n1.client())


def test_one_that_has_ended_says_who_it_was_where_that_is_asked_for(node: NodeMaker, old: float) -> None:
    n1, late = node("n1"), node("n2", signed_s=old)
    server, _ = handshake(n1.server(require_client=False, expired_too=True), late.client())
    identity, ends_s = channel.ended_peer(server)
    assert identity == Identity(CLUSTER, "n2") and ends_s < time.time()
    with pytest.raises(Unauthenticated, match="has ended"):
        channel.peer(server)
    # Also between two nodes that were both away.
    handshake(late.server(expired_too=True), node("n3", signed_s=old).client(expired_too=True))


def test_letting_ended_ones_through_lets_no_foreign_one_through(node: NodeMaker, authority: Authority, old: float) -> None:
    n1 = node("n1")
    stranger = node("n2", by=Authority.create(CLUSTER), trusts=authority, signed_s=old)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(n1.server(require_client=False, expired_too=True), stranger.client())


def test_a_joiner_whose_clock_is_far_behind_is_let_in(node: NodeMaker) -> None:
    """What it would see: a certificate signed by a clock that is a year ahead of its own."""
    ahead = node("n1", signed_s=time.time() + 365 * 86400)
    handshake(ahead.server(), node("n2").client())
    handshake(node("n2").server(), ahead.client())


# --- the pinned authority


def test_the_authority_that_a_token_names_is_enough_for_a_joiner(node: NodeMaker, authority: Authority) -> None:
    n1 = node("n1")
    handshake(n1.server(require_client=False), channel.pinned_context(authority.fingerprint))


def test_another_authority_than_the_pinned_one_is_refused_in_the_handshake(node: NodeMaker, authority: Authority) -> None:
    other = Authority.create(CLUSTER)
    with pytest.raises(ssl.SSLCertVerificationError, match="not of the cluster"):
        handshake(node("n1", by=other).server(require_client=False), channel.pinned_context(authority.fingerprint))


def test_showing_the_pinned_authority_without_being_signed_by_it_is_refused(node: NodeMaker, authority: Authority) -> None:
    """Anybody may have the authority's certificate: it is no secret."""
    liar = node("n1", by=Authority.create(CLUSTER), trusts=authority)
    liar.cert.write_text(liar.cert.read_text() + authority.pem)
    with pytest.raises(ssl.SSLCertVerificationError, match="no member"):
        handshake(liar.server(require_client=False), channel.pinned_context(authority.fingerprint))


def test_a_witness_lets_nobody_in(node: NodeMaker, authority: Authority) -> None:
    witness = node("n1", role=Role.WITNESS)
    with pytest.raises(ssl.SSLCertVerificationError, match="no member"):
        handshake(witness.server(require_client=False), channel.pinned_context(authority.fingerprint))


def test_a_certificate_that_has_ended_is_enough_for_a_joiner_whose_clock_nobody_knows(
    node: NodeMaker, authority: Authority, old: float
) -> None:
    late = node("n1", signed_s=old)
    handshake(late.server(require_client=False), channel.pinned_context(authority.fingerprint))


def listening(context: ssl.SSLContext) -> tuple[int, threading.Thread]:
    """A server that says OK once, on a real socket."""
    sock = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with sock, sock.accept()[0] as accepted:
            accepted.settimeout(10)
            try:
                with context.wrap_socket(accepted, server_side=True) as tls:
                    tls.recv(4096)
                    tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            except OSError:
                pass  # the client went away: as the test wants

    thread = threading.Thread(target=serve)
    thread.start()
    return sock.getsockname()[1], thread


@pytest.mark.parametrize("right", [True, False])
def test_the_pin_holds_with_http_client_and_with_asyncio(node: NodeMaker, authority: Authority, right: bool) -> None:
    server = node("n1").server(require_client=False)
    pinned = channel.pinned_context(authority.fingerprint if right else "0" * 64)

    port, thread = listening(server)
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=pinned, timeout=10)
    try:
        if right:
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"ok"
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                connection.connect()
    finally:
        connection.close()
        thread.join(10)

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pinned)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    port, thread = listening(server)
    try:
        if right:
            assert asyncio.run(ask(port)).endswith(b"ok")
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                asyncio.run(ask(port))
    finally:
        thread.join(10)


def test_files_that_cannot_be_read_are_named(node: NodeMaker, tmp_path: Path) -> None:
    n1 = node("n1")
    with pytest.raises(Unavailable, match=r"missing\.pem"):
        channel.server_context(tmp_path / "missing.pem", n1.key, n1.ca, True)
    n1.key.write_text("garbage")
    with pytest.raises(Unavailable, match=r"node\.key"):
        n1.client()
