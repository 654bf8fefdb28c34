"""What a leash kills and when: at the deadline, with the term, all of it, and nobody else."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from piccolod import clock
from piccolod.leadership import leash_table
from piccolod.leadership.guard import GUARD_TICK_S
from piccolod.leadership.page import PageWriter, Term, create
from piccolod.paths import Paths

from .conftest import OPEN, Containers, Leashes, a_page, arm, armed, ask, gone, wait_for

# Scheduling on a shared machine; the promise itself is the guard tick.
SLACK_S = 0.005
UNIFIED = Path("/sys/fs/cgroup/unified") if Path("/sys/fs/cgroup/unified").is_dir() else Path("/sys/fs/cgroup")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="leashes serve root alone")


def died_at(pidfd: int, timeout_s: float = 5.0) -> float:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(timeout_s * 1000), f"still alive after {timeout_s} s"
    return clock.now()


def assert_stays_alive(pids: list[int], for_s: float) -> None:
    """Nobody dies meanwhile: a guard would have acted within a tick."""
    pidfds = [os.pidfd_open(pid) for pid in pids]
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    try:
        assert not poll.poll(for_s * 1000)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def test_at_the_deadline_the_whole_tree_dies_within_a_guard_tick(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    late = []
    for round_ in range(5):
        init, everyone = containers.in_pid_namespace()
        hard_at = clock.now() + 0.4
        page_writer.write(a_page(OPEN, hard_at=hard_at, sid=round_ + 1))
        if round_ == 0:
            leashes.start(0)
        entry = armed(paths, init, name=f"c{round_}")
        arm(paths, entry)
        pidfd = os.pidfd_open(init)
        late.append(died_at(pidfd) - hard_at)
        os.close(pidfd)
        assert late[-1] >= 0, "killed before the deadline"
        wait_for(lambda: all(map(gone, everyone)), "the whole tree is dead")  # noqa: B023
        assert leash_table.proven_dead(entry)
    assert min(late) <= GUARD_TICK_S + SLACK_S, late
    assert sorted(late)[2] <= GUARD_TICK_S + SLACK_S, late


def test_a_cgroup_dies_whole_even_without_a_pid_namespace(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    pid, everyone, cgroup = containers.in_cgroup(UNIFIED)
    page_writer.write(a_page(OPEN))
    leashes.start(0)
    entry = armed(paths, pid, cgroup=str(cgroup))
    arm(paths, entry)
    page_writer.write(a_page({}))
    wait_for(lambda: all(map(gone, everyone)), "every process of the cgroup is dead")
    wait_for(lambda: leash_table.proven_dead(entry), "it is proven")


def test_a_term_that_left_the_page_or_changed_its_token_costs_its_container(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page({**OPEN, "app:other": Term(9, 1)}))
    leashes.start(0)
    kept, _ = containers.in_pid_namespace()
    lost, _ = containers.in_pid_namespace()
    for entry in (armed(paths, kept, name="kept", resource="app:other", token=9), armed(paths, lost, name="lost")):
        arm(paths, entry)
    page_writer.write(a_page({"app:notes": Term(8, 2), "app:other": Term(9, 1)}))
    wait_for(lambda: gone(lost), "the container of the old term is dead")
    assert_stays_alive([kept], 4 * GUARD_TICK_S)


def test_a_closing_term_has_until_the_deadline_and_no_longer(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    hard_at = clock.now() + 0.6
    page_writer.write(a_page({"app:notes": Term(7, 1, closing=True)}, hard_at=hard_at))
    leashes.start(0)
    init, _ = containers.in_pid_namespace()
    arm(paths, armed(paths, init))
    os.kill(init, signal.SIGTERM)
    pidfd = os.pidfd_open(init)
    assert died_at(pidfd) >= hard_at
    os.close(pidfd)


def test_nothing_dies_while_the_deadline_is_infinite_and_every_writer_is_dead(
    paths: Paths, leashes: Leashes, containers: Containers
) -> None:
    create(paths.page)
    writer = PageWriter(paths.page)
    writer.write(a_page(OPEN))
    writer.close()
    leashes.start_all()
    _, everyone = containers.in_pid_namespace()
    entry = armed(paths, everyone[0])
    for index in (0, 1):
        assert ask(paths, index, f"ARM {entry.file}") == "ACK"
    assert_stays_alive(everyone, 6 * GUARD_TICK_S)


def test_a_killed_leash_takes_nobody_along_and_its_successor_knows_everything(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    page_writer.write(a_page(OPEN))
    leashes.start(0)
    init, everyone = containers.in_pid_namespace()
    arm(paths, armed(paths, init))
    leashes.kill(0)
    assert_stays_alive(everyone, 4 * GUARD_TICK_S)
    leashes.start(0)
    page_writer.write(a_page({}))
    wait_for(lambda: all(map(gone, everyone)), "the successor killed what it was never told of")


def test_a_leash_that_starts_after_the_deadline_kills_at_once(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    init, _ = containers.in_pid_namespace()
    armed(paths, init)
    page_writer.write(a_page(OPEN, hard_at=clock.now() - 1))
    leashes.start(0)
    wait_for(lambda: gone(init), "the container is dead")


def test_a_recycled_pid_is_not_killed(paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers) -> None:
    """The entry names a process that started at another time: whoever has its pid now is not the container."""
    init, everyone = containers.in_pid_namespace()
    entry = armed(paths, init)._replace(start_ticks=1)
    leash_table.write(paths.leash, entry)
    page_writer.write(a_page({}))
    leashes.start(0)
    assert leash_table.proven_dead(entry)
    assert_stays_alive(everyone, 4 * GUARD_TICK_S)


def test_a_page_that_is_gone_holds_no_term(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    """Absent is not leader, for a guard as for the gate."""
    page_writer.write(a_page(OPEN))
    leashes.start(0)
    init, _ = containers.in_pid_namespace()
    arm(paths, armed(paths, init))
    paths.page.unlink()
    wait_for(lambda: gone(init), "the container is dead")


def test_a_leash_that_was_frozen_over_the_deadline_kills_as_soon_as_it_thaws(
    paths: Paths, page_writer: PageWriter, leashes: Leashes, containers: Containers
) -> None:
    hard_at = clock.now() + 0.3
    page_writer.write(a_page(OPEN, hard_at=hard_at))
    process = leashes.start(0)
    init, _ = containers.in_pid_namespace()
    arm(paths, armed(paths, init))
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: clock.now() > hard_at + 0.1, "the deadline has passed")
    assert not gone(init)
    process.send_signal(signal.SIGCONT)
    thawed_at, pidfd = clock.now(), os.pidfd_open(init)
    assert died_at(pidfd) - thawed_at <= GUARD_TICK_S + 0.1
    os.close(pidfd)
