"""The client of the leashes: armed at both or not at all, disarmed once proven dead."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from piccolod.errors import Busy, Failed, Unavailable
from piccolod.leadership import leash_table
from piccolod.leadership.leash_client import LeashClient
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.page import PageWriter
from piccolod.paths import Paths

from .conftest import OPEN, Containers, Leashes, a_page, ask, gone, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="leashes serve root alone")


@pytest.fixture
def init(page_writer: PageWriter, leashes: Leashes, containers: Containers) -> int:
    """The first process of a container; its term is open, and both leashes guard."""
    page_writer.write(a_page(OPEN))
    leashes.start_all()
    return containers.in_pid_namespace()[0]


def an_entry(pid: int) -> Entry:
    return leash_table.entry_of("c1", "app:notes", 7, 1, pid=pid)


def test_armed_means_synced_and_acknowledged_by_both(paths: Paths, init: int) -> None:
    entry = an_entry(init)
    asyncio.run(LeashClient(paths).arm(entry))
    assert leash_table.read(paths.leash) == {entry.file: entry}
    for survivor in (0, 1):
        assert ask(paths, survivor, f"DISARM {entry.file}") == "ALIVE", "each holds it itself"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_with_one_leash_dead_or_frozen_nothing_is_started_and_the_other_guards(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, init: int, how: signal.Signals
) -> None:
    leashes.processes[1].send_signal(how)
    entry = an_entry(init)
    with pytest.raises(Unavailable, match="1 of 2"):
        asyncio.run(LeashClient(paths).arm(entry))
    assert asyncio.run(LeashClient(paths).guards()) == 1
    page_writer.write(a_page({}))
    wait_for(lambda: gone(init), "the other leash killed it")


def test_without_any_leash_nothing_is_started(paths: Paths, containers: Containers) -> None:
    init, _ = containers.in_pid_namespace()
    with pytest.raises(Unavailable, match="0 of 2"):
        asyncio.run(LeashClient(paths).arm(an_entry(init)))


def test_disarming_what_lives_is_refused_and_changes_nothing(
    paths: Paths, leashes: Leashes, containers: Containers, init: int
) -> None:
    entry = an_entry(init)
    client = LeashClient(paths)
    asyncio.run(client.arm(entry))
    with pytest.raises(Failed, match="not proven dead"):
        asyncio.run(client.disarm(entry))
    assert leash_table.read(paths.leash) == {entry.file: entry}
    os.kill(init, signal.SIGKILL)
    wait_for(lambda: leash_table.proven_dead(entry), "it is dead")
    asyncio.run(client.disarm(entry))
    asyncio.run(client.disarm(entry))
    assert leash_table.read(paths.leash) == {}


def test_a_container_that_runs_is_not_armed_over(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page(OPEN))
    leashes.start_all()
    first, _ = containers.in_pid_namespace()
    second, _ = containers.in_pid_namespace()
    client = LeashClient(paths)
    asyncio.run(client.arm(an_entry(first)))
    with pytest.raises(Busy, match="still runs"):
        asyncio.run(client.arm(an_entry(second)))
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: gone(first), "the first run is dead")
    asyncio.run(client.arm(an_entry(second)))
