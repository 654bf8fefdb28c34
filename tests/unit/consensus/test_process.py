"""Consensus as a process of its own: commands over the real bus, kill -9 in the middle of it. The test plays the supervisor."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from piccolod import clock, config
from piccolod.bus.client import CommandClient
from piccolod.bus.peers import Peers
from piccolod.errors import Busy, Forbidden, PiccoloError
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader, create
from piccolod.link import Link
from piccolod.protocol.consensus import Campaign, Closing, GetHistory, GetLeadership, Withdraw
from piccolod.pulse import FD, PulseReader

_ENTRY = """
import socket, sys
from piccolod.link import Link
from services.consensus.__main__ import main
main(Link(socket.socket(fileno=int(sys.argv[1]))))
"""
_READY_S = 10.0


class Consensus:
    """One node's consensus, started and restarted as the supervisor does: exec, START, READY."""

    def __init__(self, folder: Path) -> None:
        self.config = config.parse(f'[node]\nname = "n1"\nstate_dir = "{folder}/state"\nrun_dir = "{folder}/run"')
        self.paths = self.config.paths
        for path in (self.paths.bus, self.paths.leash, self.paths.state):
            path.mkdir(parents=True)
        create(self.paths.page)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.paths.command_socket("consensus")))
        self._listener.listen(64)
        self.peers = Peers()
        self.life = 0
        self._link: Link | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.caller = "apps"

    def start(self) -> None:
        self.life += 1
        ours, theirs = Link.pair()
        self._link = ours
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ENTRY, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[3]
        )
        theirs.close()
        table = {"consensus": [self.process.pid, f"c{self.life}"], self.caller: [os.getpid(), "t1"]}
        self.peers.learn(table)
        pulse = PulseReader()
        ours.send(
            {"t": "START", "module": "consensus", "inst": f"c{self.life}", "config": dataclasses.asdict(self.config),
             "peers": table, "fds": [FD, "command"], "wake": ""},
            (pulse.fd, self._listener.fileno()),
        )  # fmt: skip
        pulse.close()
        give_up_at = clock.now() + _READY_S
        while clock.now() < give_up_at:
            select.select([ours.fileno()], [], [], 0.5)
            while (got := ours.receive()) is not None:
                if got[0]["t"] == "READY":
                    return
        raise AssertionError("consensus did not get ready")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self._link is not None:
            self._link.close()
        self.process = self._link = None

    def close(self) -> None:
        self.kill()
        self._listener.close()

    def drain(self) -> None:
        assert self._link is not None
        while self._link.receive() is not None:
            pass


@pytest.fixture
def consensus() -> Iterator[Consensus]:
    folder = Path(tempfile.mkdtemp(prefix="cp"))
    made = Consensus(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


def with_client(consensus: Consensus, work: Callable[[CommandClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        context: zmq.Context[Any] = zmq.Context()
        client = CommandClient(context, consensus.paths, consensus.caller, "t1", consensus.peers)
        try:
            return await work(client)
        finally:
            client.close()
            context.destroy(linger=0)

    return asyncio.run(run())


def test_a_term_is_open_for_every_process_when_the_answer_arrives(consensus: Consensus) -> None:
    consensus.start()
    gate = Gate(PageReader(consensus.paths.page))

    async def work(client: CommandClient) -> None:
        assert not gate.holds("app:notes")
        term = await client.call(Campaign(resource="app:notes"), timeout_s=5)
        assert gate.check("app:notes") == (term.gen, term.epoch, term.token)
        await client.call(Closing(resource="app:notes", token=term.token), timeout_s=5)
        assert not gate.holds("app:notes")
        with pytest.raises(Busy):
            await client.call(Campaign(resource="app:notes"), timeout_s=5)
        await client.call(Withdraw(resource="app:notes", token=term.token, reason="drain"), timeout_s=5)
        (leadership,) = (await client.call(GetLeadership(resource="app:notes"), timeout_s=5)).leaderships
        assert (leadership.role, leadership.reason) == ("follower", "drain")

    with_client(consensus, work)


def test_who_may_call_it_but_not_for_this_resource_is_refused(consensus: Consensus) -> None:
    consensus.start()

    async def work(client: CommandClient) -> None:
        with pytest.raises(Forbidden):
            await client.call(Campaign(resource="kernel"), timeout_s=5)
        with pytest.raises(Forbidden):
            await client.call(GetHistory(), timeout_s=5)

    with_client(consensus, work)


def test_kill_9_of_consensus_ends_no_term_and_the_next_life_knows_them_all(consensus: Consensus) -> None:
    consensus.start()
    gate = Gate(PageReader(consensus.paths.page))

    async def begin(client: CommandClient) -> Any:
        return [await client.call(Campaign(resource=f"app:a{n}"), timeout_s=5) for n in range(5)]

    async def again(client: CommandClient) -> None:
        assert await begin(client) == terms

    terms = with_client(consensus, begin)
    for _ in range(3):
        consensus.kill()
        assert all(gate.check(term.resource).token == term.token for term in terms), "no writer is needed to act"
        before = PageReader(consensus.paths.page).read()
        consensus.start()
        assert PageReader(consensus.paths.page).read() == before
        with_client(consensus, again)


def test_campaigns_in_flight_at_kill_9_are_whole_or_absent(consensus: Consensus) -> None:
    async def storm(client: CommandClient) -> list[Any]:
        tasks = [
            asyncio.ensure_future(client.call(Campaign(resource=f"app:s{consensus.life}-{n}"), timeout_s=1, target="consensus"))
            for n in range(30)
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert consensus.process is not None
        consensus.process.send_signal(signal.SIGKILL)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, PiccoloError) for result in results if isinstance(result, BaseException))
        return [result for result in results if not isinstance(result, BaseException)]

    answered: list[Any] = []
    for _ in range(4):
        consensus.start()
        answered += with_client(consensus, storm)
        consensus.kill()
    consensus.start()
    page = PageReader(consensus.paths.page).read()
    assert page is not None and len(answered) >= 4
    assert {term.resource: term.token for term in answered}.items() <= {r: t.token for r, t in page.terms.items()}.items()
    assert len({term.token for term in page.terms.values()}) == len(page.terms)


def test_it_ends_with_its_supervisor_and_leaves_the_terms(consensus: Consensus) -> None:
    consensus.start()

    async def begin(client: CommandClient) -> Any:
        return await client.call(Campaign(resource="app:a"), timeout_s=5)

    term = with_client(consensus, begin)
    assert consensus._link is not None and consensus.process is not None
    consensus._link.close()
    consensus._link = None
    assert consensus.process.wait(timeout=2) != 0
    assert Gate(PageReader(consensus.paths.page)).check("app:a").token == term.token


def test_it_stops_when_asked_and_leaves_the_terms(consensus: Consensus) -> None:
    consensus.start()

    async def begin(client: CommandClient) -> Any:
        return await client.call(Campaign(resource="app:a"), timeout_s=5)

    with_client(consensus, begin)
    assert consensus._link is not None and consensus.process is not None
    consensus._link.send({"t": "STOP", "seconds": 3.0})
    assert consensus.process.wait(timeout=5) == 0
    assert Gate(PageReader(consensus.paths.page)).holds("app:a")
