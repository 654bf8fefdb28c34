"""A leader that goes, and one that comes: who was not served yet is, and who was served is cut, never glued to the old one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from services.router.route import Listener, Mode, Protocol
from services.router.tunnel.way import LONGEST_PAUSE_S

from ..harness import backend, echo, listening, on_loop, until
from .harness import APP, cluster, served_within, three


@on_loop
async def test_a_client_that_came_before_the_failover_was_known_is_served_by_the_new_leader(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, old, new = made.node("n1"), made.node("n2"), made.node("n3")
            gone = listening()
            number = gone.getsockname()[1]
            gone.close()
            n1.follows(old, number=number)
            client = await n1.connect()
            client.writer.write(b"patient")
            await until(lambda: n1.port.trouble, "the old leader cannot be reached")
            assert n1.port.trouble.startswith("n2 cannot be reached: ")
            assert len(n1.port.held) == 1
            new.leads(at, epoch=5)
            n1.follows(new, epoch=5)
            assert await asyncio.wait_for(client.reader.readexactly(7), 2) == b"patient"
            assert n1.port.trouble == ""
            await client.close()


@on_loop
async def test_a_leader_that_hangs_after_it_accepted_does_not_keep_the_client_from_the_new_one(tmp_path: Path) -> None:
    """As a machine whose processes stand still: its kernel accepts, nobody answers."""
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, old, new = made.node("n1"), made.node("n2"), made.node("n3")
            with listening() as frozen:
                n1.follows(old, number=frozen.getsockname()[1])
                client = await n1.connect()
                client.writer.write(b"patient")
                await until(lambda: len(n1.port.held) == 1, "it waits")
                new.leads(at, epoch=5)
                n1.follows(new, epoch=5)
                assert await asyncio.wait_for(client.reader.readexactly(7), 2) == b"patient"
                await client.close()


@on_loop
async def test_one_that_is_asked_about_when_the_route_turns_is_asked_about_anew(tmp_path: Path) -> None:
    """The old leader has the preamble and looks its sender up for ever."""
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, old, new = made.node("n1"), made.node("n2"), made.node("n3")
            old.leads(at)
            old.relay.vet_by(lambda _peer, _then: None)
            n1.follows(old)
            client = await n1.connect()
            client.writer.write(b"patient")
            await until(lambda: old.relay._vetting, "the old leader was asked")
            new.leads(at, epoch=5)
            n1.follows(new, epoch=5)
            assert await asyncio.wait_for(client.reader.readexactly(7), 2) == b"patient"
            assert old.port.total == 0
            await client.close()
            await n1.idle()


@on_loop
async def test_an_answer_of_the_old_leader_that_comes_too_late_is_of_no_effect(tmp_path: Path) -> None:
    """Another app keeps the connections to the old leader up."""
    late: list[Callable[[str], None]] = []
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, old, new = made.node("n1"), made.node("n2"), made.node("n3")
            old.leads(at)
            old.relay.vet_by(lambda _peer, then: late.append(then))
            n1.follows(old)
            other = msgspec.structs.replace(n1.table.route(APP), app="other", listeners=(Listener(name="web", public_port=1),))
            n1.table.offer(other)
            n1.relay.open(n1.table.port("other", "web"), listening())
            client = await n1.connect()
            await until(lambda: late, "the old leader was asked")
            n1.follows(new, epoch=5)
            assert n1.lines
            for then in late:
                then("")
            await until(lambda: n1.port.trouble == "n3: it has no route for notes/web", "the new leader is asked")
            new.leads(at, epoch=5)
            assert await served_within(client, b"hello", 2) < 2
            assert new.port.total == 1
            await client.close()


@on_loop
async def test_another_epoch_is_refused_until_the_route_of_it_is_there(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at, epoch=4)
            n1.follows(n2, epoch=5)
            client = await n1.connect()
            client.writer.write(b"patient")
            await until(lambda: n1.port.trouble, "it is refused")
            assert n1.port.trouble == "n2: it has epoch 4 of notes, not 5"
            assert n2.port.total == 0
            n2.leads(at, epoch=5)
            assert await asyncio.wait_for(client.reader.readexactly(7), 2) == b"patient"
            await client.close()


@on_loop
async def test_a_leader_whose_app_is_not_there_yet_serves_as_soon_as_it_is(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n1.follows(n2)
            client = await n1.connect()
            client.writer.write(b"patient")
            await until(lambda: n1.port.trouble, "it is refused")
            assert n1.port.trouble == "n2: it has no route for notes/web"
            n2.leads(None)
            await until(lambda: n1.port.trouble == "n2: the app has no address for this listener yet", "another reason")
            n2.leads(at)
            assert await asyncio.wait_for(client.reader.readexactly(7), 2) == b"patient"
            await client.close()


@on_loop
async def test_a_gate_that_shuts_cuts_what_came_through_a_tunnel_and_refuses_what_comes(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n2.leads(at)
            n1.follows(n2)
            served = await n1.talking()
            n2.page.lose()
            assert await asyncio.wait_for(served.was_reset(), 2)
            waits = await n1.connect()
            waits.writer.write(b"patient")
            await until(lambda: n1.port.trouble, "it is refused")
            assert n2.port.reason
            assert n1.port.trouble == f"n2: {n2.port.reason}"
            n2.page.lead()
            assert await asyncio.wait_for(waits.reader.readexactly(7), 2) == b"patient"
            await served.close()
            await waits.close()


@on_loop
async def test_a_leader_that_dies_cuts_its_flows_and_a_new_epoch_cuts_those_that_hang(tmp_path: Path) -> None:
    async with three(tmp_path) as (at, n1, n2, n3):
        first = await n1.talking()
        n2.relay.cut(n2.port)
        assert await asyncio.wait_for(first.was_reset(), 2)
        second = await n1.talking()
        n3.leads(at, epoch=5)
        n1.follows(n3, epoch=5)
        assert await asyncio.wait_for(second.was_reset(), 2)
        third = await n1.talking()
        assert n3.port.total == 1
        for client in (first, second, third):
            await client.close()


@on_loop
async def test_a_client_that_had_said_nothing_yet_is_served_by_the_next_leader(tmp_path: Path) -> None:
    async with three(tmp_path) as (at, n1, n2, n3):
        client = await n1.connect()
        await until(lambda: n2.port.clients, "its container is connected")
        n3.leads(at, epoch=5)
        n1.follows(n3, epoch=5)
        assert await served_within(client, b"hello", 2) < 2
        assert n3.port.total == 1
        await until(lambda: not n2.port.clients, "the old leader has let it go")
        await client.close()
        await n1.idle()


@on_loop
async def test_whoever_waits_in_vain_is_told_so_in_time(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        n1, n2 = made.node("n1"), made.node("n2")
        n1.hold_s, n1.protocol = 0.4, Protocol.HTTP
        n1.follows(n2)
        client = await n1.connect()
        answer = await asyncio.wait_for(client.rest(), 3)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"n2: it has no route for notes/web" in answer
        assert b"Retry-After: 1" in answer
        n1.protocol = Protocol.RAW
        n1.follows(n2)
        raw = await n1.connect()
        assert await asyncio.wait_for(raw.was_reset(), 3)
        await n1.idle()
        await client.close()
        await raw.close()


@on_loop
async def test_trying_again_does_not_prolong_the_hold(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        n1, n2 = made.node("n1"), made.node("n2")
        n1.hold_s = 1.0
        n1.holds()
        client = await n1.connect()
        began = asyncio.get_running_loop().time()
        await until(lambda: len(n1.port.held) == 1, "it is held")
        n1.follows(n2)
        assert await asyncio.wait_for(client.was_reset(), 3)
        assert asyncio.get_running_loop().time() - began < 1.4
        await client.close()


@on_loop
async def test_those_that_are_held_go_through_the_tunnel_when_a_leader_is_known(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n1.holds()
            clients = [await n1.connect() for _ in range(50)]
            for index, client in enumerate(clients):
                client.writer.write(b"%02d" % index)
            await until(lambda: len(n1.port.held) == 50, "all are held")
            n2.leads(at)
            n1.follows(n2)
            for index, client in enumerate(clients):
                assert await asyncio.wait_for(client.reader.readexactly(2), 5) == b"%02d" % index
                await client.close()


@on_loop
async def test_a_node_that_becomes_the_leader_itself_serves_those_that_waited_for_another(tmp_path: Path) -> None:
    async with backend(echo) as at:
        with cluster(tmp_path) as made:
            n1, n2 = made.node("n1"), made.node("n2")
            n1.follows(n2)
            client = await n1.connect()
            client.writer.write(b"patient")
            await until(lambda: n1.port.trouble, "n2 does not serve")
            n1.leads(at, epoch=5, token=10)
            assert await asyncio.wait_for(client.reader.readexactly(7), 2) == b"patient"
            assert (n1.port.trouble, n1.lines) == ("", 0)
            await client.close()


@on_loop
async def test_a_client_that_goes_while_it_waits_leaves_nothing_behind(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        n1, n2 = made.node("n1"), made.node("n2")
        n2.relay.vet_by(lambda _peer, _then: None)
        n1.follows(n2)
        client = await n1.connect()
        await until(lambda: n2.relay._vetting, "the leader was asked")
        client.abort()
        await n1.idle()
        await until(lambda: not n2.relay._vetting, "the leader forgot it")


@on_loop
async def test_one_client_at_a_time_tries_a_leader_that_refuses(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        n1, n2 = made.node("n1"), made.node("n2")
        n1.follows(n2)
        clients = [await n1.connect() for _ in range(40)]
        await until(lambda: len(n1.port.held) == 40, "all wait")
        await until(lambda: n1.port.way is not None and n1.port.way.pause_s == LONGEST_PAUSE_S, "it was tried again and again")
        assert n1.port.way is not None
        assert len(n1.port.way.queue) + len(n1.port.way.asking) == 40
        assert n1.lines <= 20
        assert n2.relay.peer_port.refused == 0
        for client in clients:
            client.abort()
        await n1.idle()


@on_loop
async def test_a_move_that_drains_lets_flows_end_and_holds_new_ones(tmp_path: Path) -> None:
    async with three(tmp_path) as (at, n1, _, n3):
        flows = await n1.talking()
        n1.holds()
        assert n1.port.mode is Mode.HOLD
        waits = await n1.connect()
        assert await served_within(flows, b"still here", 2) < 2
        n3.leads(at, epoch=5)
        n1.follows(n3, epoch=5)
        assert await served_within(waits, b"hello", 2) < 2
        assert await asyncio.wait_for(flows.was_reset(), 2)
        await flows.close()
        await waits.close()
