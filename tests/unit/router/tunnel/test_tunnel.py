"""Clients of one node, served by the container of another: bytes, ends, resets and limits as without a tunnel between."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
from pathlib import Path

import pytest

from services.router.route import ClientIp, Protocol

from ..harness import RESET, backend, echo, flood, http_ok, on_loop, until
from .harness import Cluster, Node, cluster, two


def pair(made: Cluster, at: tuple[str, int] | None, **limits: object) -> tuple[Node, Node]:
    """(the node that the clients come to, the leader)."""
    n1, n2 = made.node("n1", **limits), made.node("n2", **limits)
    n2.leads(at)
    n1.follows(n2)
    return n1, n2


@on_loop
async def test_a_client_of_any_node_is_served_by_the_leader(tmp_path: Path) -> None:
    async with two(tmp_path) as (n1, n2):
        assert await n1.asked(b"hello") == b"hello"
        await n1.idle()
        await n2.idle()
        assert (n1.port.total, n1.port.moved()) == (1, (5, 5))
        assert (n2.port.total, n2.port.moved()) == (1, (5, 5))
        assert n2.refused == []


@on_loop
async def test_the_first_word_may_be_the_containers(tmp_path: Path) -> None:
    async def greets(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        await writer.drain()

    async with backend(greets) as at:
        with cluster(tmp_path) as made:
            n1, _ = pair(made, at)
            client = await n1.connect()
            assert await client.rest() == b"220 hello\r\n"
            await client.close()


@on_loop
async def test_a_client_that_ends_its_side_still_gets_the_answer(tmp_path: Path) -> None:
    async def answers_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read(-1)
        writer.write(b"you said " + asked)
        await writer.drain()

    async with backend(answers_at_the_end) as at:
        with cluster(tmp_path) as made:
            n1, n2 = pair(made, at)
            assert await n1.asked(b"all of it") == b"you said all of it"
            await n1.idle()
            await n2.idle()


@on_loop
async def test_a_container_that_ends_its_side_still_hears_the_client(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def ends_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"that is all")
        writer.write_eof()
        heard.append(await reader.read(-1))

    async with backend(ends_first) as at:
        with cluster(tmp_path) as made:
            n1, n2 = pair(made, at)
            client = await n1.connect()
            assert await client.rest() == b"that is all"
            client.writer.write(b"x" * 300_000)
            client.writer.write_eof()
            await until(lambda: heard, "the container heard to the end")
            assert heard == [b"x" * 300_000]
            await n1.idle()
            await n2.idle()
            await client.close()


@on_loop
async def test_ten_megabytes_each_way_arrive_as_they_were(tmp_path: Path) -> None:
    data = random.Random(7).randbytes(10 * 2**20)
    async with two(tmp_path) as (n1, n2):
        client = await n1.connect()

        async def send() -> None:
            for start in range(0, len(data), 70_000):
                client.writer.write(data[start : start + 70_000])
                await client.writer.drain()
            client.writer.write_eof()

        sending = asyncio.create_task(send())
        back = await client.rest()
        await sending
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
        await client.close()
        await n1.idle()
        await n2.idle()


@on_loop
async def test_pieces_of_every_size_stay_in_their_order(tmp_path: Path) -> None:
    source = random.Random(11)
    sizes = [0, 1, 2, 3, 4, 5, 16379, 16380, 16381, 16384, 16385, 32768, 65536, 131071, 131072, 131073, 262144]
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, _ = pair(made, at)
            client = await n1.talking()
            for size in sizes:
                await client.hears(source.randbytes(size))
            await client.close()


@on_loop
async def test_a_client_that_resets_resets_the_container_and_the_other_way_round(tmp_path: Path) -> None:
    seen: list[str] = []

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (word := await reader.read(100)) not in (b"", b"reset me"):
                writer.write(word)
            if word:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
            seen.append("end")
        except ConnectionResetError:
            seen.append("reset")
            raise

    async with backend(waits) as at:
        with cluster(tmp_path) as made:
            n1, n2 = pair(made, at)
            client = await n1.talking()
            client.abort()
            await until(lambda: seen == ["reset"], "the container saw the reset")
            await n2.idle()
            other = await n1.talking()
            other.writer.write(b"reset me")
            assert await other.was_reset()
            await n1.idle()
            await n2.idle()
            await other.close()


@on_loop
async def test_a_reader_that_stalls_stops_the_sender_and_costs_a_bounded_buffer(tmp_path: Path) -> None:
    sent = 0

    async def pours(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with backend(pours) as at:
        with cluster(tmp_path) as made:
            n1, n2 = pair(made, at)
            client = await n1.connect(limit=4096)
            last = -1

            def stands_still() -> bool:
                nonlocal last
                last, before = sent, last
                return 0 < sent == before

            while not stands_still():
                await asyncio.sleep(0.2)
            for node in (n1, n2):
                assert node.relay.buffered_bytes < 400_000
            taken = await client.reader.readexactly(4 * sent)
            assert taken == b"x" * len(taken)
            client.abort()
            await n1.idle()
            await n2.idle()


@on_loop
async def test_the_address_of_the_client_is_told_once_by_the_node_that_it_came_to(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n1.client_ip = n2.client_ip = ClientIp.PROXY_V2
            n2.leads(at)
            n1.follows(n2)
            client = await n1.connect()
            own = client.writer.get_extra_info("sockname")[1]
            back = await client.ask(b"hello")
            assert back[:12] == b"\r\n\r\n\x00\r\nQUIT\n"
            assert back[28:] == b"hello"
            assert struct.unpack("!HH", back[24:28]) == (own, n1.number)
            await client.close()


@on_loop
async def test_x_forwarded_for_is_of_the_client_and_not_of_the_tunnel(tmp_path: Path) -> None:
    async with backend(http_ok) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n1.client_ip = n2.client_ip = ClientIp.XFF
            n1.protocol = n2.protocol = Protocol.HTTP
            n2.leads(at)
            n1.follows(n2)
            client = await n1.connect()
            client.writer.write(b"GET / HTTP/1.1\r\nHost: notes\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
            back = (await client.rest()).lower()
            assert back.count(b"x-forwarded-for: 127.0.0.1\r\n") == 1
            assert b"203.0.113.9" not in back
            await client.close()


@on_loop
async def test_an_app_that_does_not_accept_is_told_to_the_client_as_at_home(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        at = closed.getsockname()[:2]
    with cluster(tmp_path) as made:
        n1, n2 = made.node("n1"), made.node("n2")
        n1.protocol = Protocol.HTTP
        n2.leads(at)
        n1.follows(n2)
        client = await n1.connect()
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"does not accept connections" in answer
        n1.protocol = Protocol.RAW
        n1.follows(n2)
        raw = await n1.connect()
        assert await raw.was_reset()
        await client.close()
        await raw.close()


@on_loop
async def test_a_hundred_clients_at_once_are_all_served(tmp_path: Path) -> None:
    async with two(tmp_path) as (n1, n2):
        answers = await asyncio.gather(*(n1.asked(b"client %d" % index) for index in range(100)))
        assert answers == [b"client %d" % index for index in range(100)]
        await n1.idle()
        await n2.idle()
        assert n2.port.total == 100


@on_loop
async def test_some_connections_wait_ready_and_one_that_died_costs_nobody_anything(tmp_path: Path) -> None:
    async with two(tmp_path) as (n1, n2):
        await until(lambda: n1.lines == len(n2.relay._silent) == 4, "four are ready before anybody came")
        arrived = n2.relay.peer_port.total
        n2.relay.dismiss_guests()
        n2.relay._bury()
        assert await n1.asked(b"hello") == b"hello"
        assert n2.relay.peer_port.total > arrived
        assert n1.port.refused == 0


@on_loop
async def test_a_client_that_has_its_connection_does_not_wait_for_a_handshake_of_another(tmp_path: Path) -> None:
    async with two(tmp_path) as (n1, n2):
        await until(lambda: n1.lines == len(n2.relay._silent) == 4, "four are ready")
        (pool,) = n1.relay._pools.values()
        line = pool.take()
        assert line is not None
        pool.need(n1.relay.now)
        assert pool.lines == 3
        pool.fill(n1.relay.now)
        assert pool.lines == 4
        pool.put_back(line, n1.relay.now)


@on_loop
async def test_what_nobody_needs_is_closed_after_a_while_by_the_node_that_opened_it(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = pair(made, at, warm_s=0.3)
            assert await n1.asked(b"hello") == b"hello"
            await until(lambda: n1.lines == 0, "none is kept ready")
            await until(lambda: not n2.relay._parties, "the leader keeps none")
            assert n2.refused == []
            assert await n1.asked(b"again") == b"again"


@on_loop
async def test_sessions_are_resumed(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = pair(made, at, warm=0)
            for _ in range(3):
                assert await n1.asked(b"hello") == b"hello"
            await n2.idle()
            client = await n1.talking()
            (leg,) = [leg for leg in n2.relay._legs.values() if leg.tunnel is not None]
            assert leg.tunnel is not None
            assert leg.tunnel.tls.session_reused
            await client.close()


@on_loop
async def test_the_leader_counts_a_client_by_its_own_address(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2", per_client=2)
            n2.leads(at)
            n1.follows(n2)
            clients = [await n1.talking(), await n1.talking()]
            third = await n1.connect()
            assert await third.was_reset()
            assert n2.port.refused == 1
            for client in (*clients, third):
                await client.close()


@on_loop
async def test_an_idle_flow_ends_after_its_time(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = pair(made, at, idle_s=0.4)
            client = await n1.talking()
            assert await client.was_reset()
            await n1.idle()
            await n2.idle()
            await client.close()


@on_loop
async def test_many_floods_share_the_buffers(tmp_path: Path) -> None:
    """Beyond the limit each flow takes small sips, and all of it is given back."""
    async with backend(flood) as at:
        with cluster(tmp_path) as made:
            n1, n2 = pair(made, at, buffered_bytes=256 * 1024)
            clients = [await n1.connect(limit=4096) for _ in range(24)]
            for client in clients:
                await client.reader.readexactly(500_000)
            for node in (n1, n2):
                assert node.relay.buffered_bytes < 3 * 2**20
            for client in clients:
                client.abort()
            await n1.idle()
            await n2.idle()


@pytest.mark.parametrize("late", [False, True])
def test_the_list_may_be_asked_at_leisure(tmp_path: Path, late: bool) -> None:
    @on_loop
    async def run() -> None:
        async with backend(echo) as at:
            with cluster(tmp_path) as made:
                n1, n2 = pair(made, at)
                n2.vetted_late = late
                answers = await asyncio.gather(*(n1.asked(b"hello") for _ in range(10)))
                assert answers == [b"hello"] * 10

    run()
