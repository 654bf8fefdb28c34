"""The door for other nodes: only members of this cluster come in, whatever is sent and however slowly."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import msgspec
import pytest

from piccolod.pki import channel
from piccolod.pki.authority import Authority
from piccolod.pki.identity import Role
from services.router.tunnel.wire import HEAD, SERVED, Preamble, Verdict, answer_of

from ..harness import backend, echo, on_loop, until
from .harness import APP, CLUSTER, Node, cluster

PREAMBLE = Preamble(app=APP, listener="web", epoch=4, address="192.0.2.7", port=50000)


class Speaker:
    """A node that speaks to a peer port by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, words: bytes) -> None:
        self.writer.write(HEAD.pack(len(words)) + words)

    async def hear(self) -> bytes:
        (count,) = HEAD.unpack(await asyncio.wait_for(self.reader.readexactly(HEAD.size), 5))
        return await self.reader.readexactly(count)

    async def is_sent_away(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(1), 5) == b""
        except (ConnectionError, ssl.SSLError):
            return True

    def close(self) -> None:
        self.writer.transport.abort()


async def speak(to: Node, own: Node) -> Speaker:
    context = channel.client_context(own.folder / "node.pem", own.folder / "node.key", own.folder / "ca.pem")
    return Speaker(*await asyncio.open_connection("127.0.0.1", to.peer_number, ssl=context))


@on_loop
async def test_a_member_is_served_by_hand_too(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at)
            by_hand = await speak(n2, n1)
            by_hand.say(msgspec.msgpack.encode(PREAMBLE))
            assert answer_of(await by_hand.hear()).verdict is Verdict.SERVED
            by_hand.say(b"hello")
            by_hand.say(b"")
            assert await by_hand.hear() == b"hello"
            assert await by_hand.hear() == b""
            by_hand.close()
            await n2.idle()


@on_loop
async def test_what_is_sent_before_the_answer_is_not_lost(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at)
            n2.vetted_late = True
            by_hand = await speak(n2, n1)
            for words in (msgspec.msgpack.encode(PREAMBLE), b"hello", b""):
                by_hand.say(words)
            assert answer_of(await by_hand.hear()).verdict is Verdict.SERVED
            assert [await by_hand.hear(), await by_hand.hear()] == [b"hello", b""]
            by_hand.close()


@on_loop
async def test_what_comes_right_behind_the_answer_is_not_lost(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        n1, n2 = made.node("n1"), made.node("n2")
        context = channel.server_context(n2.folder / "node.pem", n2.folder / "node.key", n2.folder / "ca.pem", True)

        async def leads_by_hand(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            by_hand = Speaker(reader, writer)
            with contextlib.suppress(asyncio.IncompleteReadError):
                await by_hand.hear()
                for words in (SERVED, b"220 hello", b""):
                    by_hand.say(words)
                await by_hand.hear()
            by_hand.close()

        server = await asyncio.start_server(leads_by_hand, "127.0.0.1", 0, ssl=context)
        n1.follows(n2, number=server.sockets[0].getsockname()[1])
        for _ in range(5):
            client = await n1.connect()
            assert await client.rest() == b"220 hello"
            await client.close()
        server.close()


@on_loop
async def test_a_refused_preamble_may_be_followed_by_another(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at)
            by_hand = await speak(n2, n1)
            wrong = {"epoch": 3}, {"epoch": 5}, {"listener": "ssh"}, {"app": "other"}
            for fields in wrong:
                by_hand.say(msgspec.msgpack.encode(msgspec.structs.replace(PREAMBLE, **fields)))
                answer = answer_of(await by_hand.hear())
                assert answer.verdict is Verdict.LATER
                assert answer.reason
            by_hand.say(msgspec.msgpack.encode(PREAMBLE))
            assert answer_of(await by_hand.hear()).verdict is Verdict.SERVED
            assert n2.port.total == 1
            by_hand.close()


@pytest.mark.parametrize("role", [Role.WITNESS])
def test_a_witness_brings_no_clients(tmp_path: Path, role: Role) -> None:
    @on_loop
    async def run() -> None:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n1.certify(role=role)
            by_hand = await speak(n2, n1)
            assert await by_hand.is_sent_away()
            assert n2.refused == ["n1 is a witness: this is for a member"]
            assert n2.relay.peer_port.refused == 1
            by_hand.close()

    run()


@on_loop
async def test_a_node_of_another_cluster_or_authority_is_sent_away(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at)
            n1.certify(cluster="beefbeef")
            other = await speak(n2, n1)
            assert await other.is_sent_away()
            assert n2.refused == ["n1 is of another cluster, beefbeef"]
            n1.certify(by=Authority.create(CLUSTER))
            n1.hold_s = 0.5
            n1.security.look()
            n1.follows(n2)
            client = await n1.connect()
            assert await client.was_reset()
            assert n2.port.total == 0
            assert len(n2.refused) > 1
            other.close()
            await client.close()


@on_loop
async def test_a_removed_node_is_refused_also_over_a_connection_that_it_kept(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at)
            n1.hold_s = 0.5
            n1.follows(n2)
            await until(lambda: n1.lines == 4, "some are ready")
            del made.listed["n1"]
            client = await n1.connect()
            assert await client.was_reset()
            assert n2.port.total == 0
            assert n2.refused
            assert set(n2.refused) == {"n1 is no node of this cluster any more"}
            await client.close()


@on_loop
async def test_another_node_in_the_place_of_the_leader_gets_nothing(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n3 = made.node("n1"), made.node("n3")
            n3.leads(at)
            n1.hold_s = 0.5
            n1.follows(n3, named="n2")
            client = await n1.connect()
            client.writer.write(b"for n2 alone")
            assert await client.was_reset()
            assert n1.port.trouble == "n2 cannot be reached: n3 answers there"
            assert n3.port.total == 0
            await client.close()


@on_loop
async def test_a_foreign_node_in_the_place_of_the_leader_gets_nothing(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1 = made.node("n1")
            foreign = made.node("n2", authority=Authority.create(CLUSTER))
            foreign.leads(at)
            n1.hold_s = 0.5
            n1.follows(foreign)
            client = await n1.connect()
            assert await client.was_reset()
            assert n1.port.trouble.startswith("n2 cannot be reached: ")
            assert foreign.port.total == 0
            await client.close()


@on_loop
async def test_garbage_instead_of_tls_is_sent_away(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        n2 = made.node("n2")
        reader, writer = await asyncio.open_connection("127.0.0.1", n2.peer_number)
        writer.write(b"GET / HTTP/1.1\r\nHost: n2\r\n\r\n")
        try:
            await asyncio.wait_for(reader.read(-1), 5)
        except ConnectionResetError:
            pass
        await until(lambda: n2.relay.peer_port.refused == 1, "it is counted")
        assert not n2.relay._parties
        writer.transport.abort()


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"this is no preamble",
        b"\x00" * 2000,
        msgspec.msgpack.encode({"app": APP}),
        msgspec.msgpack.encode(msgspec.structs.replace(PREAMBLE, address="nowhere")),
    ],
)
def test_garbage_instead_of_a_preamble_is_sent_away(tmp_path: Path, words: bytes) -> None:
    @on_loop
    async def run() -> None:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            by_hand = await speak(n2, n1)
            by_hand.say(words)
            assert await by_hand.is_sent_away()
            await until(lambda: not n2.relay._parties, "nothing is left of it")
            by_hand.close()

    run()


@on_loop
async def test_a_frame_longer_than_any_preamble_is_not_waited_for(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        n1, n2 = made.node("n1"), made.node("n2")
        by_hand = await speak(n2, n1)
        by_hand.writer.write(HEAD.pack(2**31))
        assert await by_hand.is_sent_away()
        assert n2.relay.peer_port.refused == 1
        by_hand.close()


@on_loop
async def test_a_frame_longer_than_any_of_a_client_breaks_the_flow(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at)
            by_hand = await speak(n2, n1)
            by_hand.say(msgspec.msgpack.encode(PREAMBLE))
            await by_hand.hear()
            by_hand.writer.write(HEAD.pack(2**31) + b"x" * 100)
            assert await by_hand.is_sent_away()
            await n2.idle()
            by_hand.close()


@on_loop
async def test_a_slow_handshake_and_a_slow_preamble_are_cut_off(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        n1, n2 = made.node("n1"), made.node("n2", shake_s=0.4)
        silent = socket.create_connection(("127.0.0.1", n2.peer_number))
        by_hand = await speak(n2, n1)
        by_hand.writer.write(HEAD.pack(100) + b"a little")
        assert await by_hand.is_sent_away()
        await until(lambda: n2.relay.peer_port.refused == 2, "both are counted")
        assert set(n2.refused) == {"it did not come to terms in time"}
        assert not n2.relay._parties
        silent.close()
        by_hand.close()


@on_loop
async def test_connections_without_a_client_are_limited(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2", guests=3)
            n2.leads(at)
            idle = [socket.create_connection(("127.0.0.1", n2.peer_number)) for _ in range(6)]
            await until(lambda: n2.relay.peer_port.refused == 3, "three are too many")
            for sock in idle:
                sock.close()
            await until(lambda: not n2.relay._parties, "they have gone")
            n1.follows(n2)
            assert await n1.asked(b"hello") == b"hello"


@on_loop
async def test_a_renewed_certificate_is_shown_from_the_next_connection_on(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at)
            n1.follows(n2)
            flowing = await n1.talking()
            before = await shown(n2, n1)
            assert await shown(n2, n1) == before
            for node in (n1, n2):
                node.certify()
                assert node.security.look()
                assert not node.security.look()
            assert await shown(n2, n1) != before
            await flowing.hears(b"as before")
            assert await n1.asked(b"hello") == b"hello"
            await flowing.close()


async def shown(to: Node, own: Node) -> bytes:
    """The certificate that a node shows, DER."""
    by_hand = await speak(to, own)
    try:
        certificate: bytes = by_hand.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return certificate
    finally:
        by_hand.close()
