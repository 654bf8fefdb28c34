"""Every child's end is told once, to whom it concerns, in whatever order things are heard."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from piccolod.supervisor.loop import Loop
from piccolod.supervisor.reaper import Ending, Reaper
from piccolod.supervisor.spawner import Spawner
from tests.unit.supervisor.conftest import gone, wait_for


class Yard:
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.loop = Loop(self.errors.append)
        self.reaper = Reaper(self.loop)
        self.ends: list[tuple[int, Ending]] = []
        self.made: list[int] = []

    def child(self, code: int | None = None) -> int:
        """One that ends at once with `code`, or waits to be killed."""
        pid = os.fork()
        if pid == 0:
            if code is None:
                signal.pause()
            os._exit(code or 0)
        self.made.append(pid)
        if code is not None:
            wait_for(lambda: gone(pid), "it has ended")
        return pid

    def expect(self, pid: int) -> bool:
        return self.reaper.expect(pid, lambda ending: self.ends.append((pid, ending)))


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    for pid in made.made:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    made.loop.close()


def test_the_end_of_one_that_was_announced_is_kept_until_it_is_expected(yard: Yard) -> None:
    pid = yard.child(7)
    yard.reaper.announce(pid)
    yard.reaper.reap()
    assert yard.expect(pid) is False
    assert yard.ends == []
    yard.loop.turn(0)
    assert yard.ends == [(pid, Ending(code=7))]


def test_an_announcement_that_is_on_its_way_is_heard_before_a_stranger_is_forgotten(yard: Yard) -> None:
    pid = yard.child(7)
    yard.reaper.ask = lambda: yard.reaper.announce(pid)
    yard.reaper.reap()
    yard.expect(pid)
    yard.loop.turn(0)
    assert yard.ends == [(pid, Ending(code=7))]


def test_one_that_nobody_wants_any_more_is_killed_and_told_of_to_nobody(yard: Yard) -> None:
    pid, expected = yard.child(), yard.child()
    yard.reaper.announce(pid)
    yard.reaper.announce(expected)
    yard.expect(expected)
    yard.reaper.end_all_announced()
    wait_for(lambda: (yard.reaper.reap(), gone(pid))[1], "it has ended")
    assert not gone(expected), "who is expected is a module"
    assert yard.ends == []


def test_a_pid_that_is_no_child_of_ours_is_never_killed(yard: Yard) -> None:
    yard.reaper.announce(os.getppid())
    assert not yard.reaper.is_announced(os.getppid())
    pid = yard.child(0)
    yard.reaper.reap()
    yard.reaper.announce(pid)  # its number may be another's by now
    assert not yard.reaper.is_announced(pid)


def test_what_one_end_does_wrong_costs_no_other_its_end(yard: Yard) -> None:
    first, second = yard.child(0), yard.child(0)

    def fail(_ending: Ending) -> None:
        raise RuntimeError("on purpose")

    yard.reaper.expect(first, fail)
    yard.expect(second)
    with pytest.raises(RuntimeError):
        yard.reaper.reap()
    yard.loop.turn(0)
    assert yard.ends == [(second, Ending(code=0))]


def test_a_zygote_that_cannot_be_made_for_want_of_descriptors_is_made_when_it_can_be(yard: Yard) -> None:
    told: list[str] = []
    wants = iter([OSError(24, "Too many open files")])

    def log() -> int:
        for error in wants:
            raise error
        return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    spawner = Spawner(yard.loop, yard.reaper, ("os:getpid",), log, lambda _level, event, **_facts: told.append(event))
    spawner.start()
    assert told == ["the zygote cannot be started, modules are executed"]
    wait_for(lambda: (yard.loop.turn(0.05), spawner.zygote_pid)[1], "it is made", timeout_s=4.0)
    yard.made.append(spawner.zygote_pid)
    spawner.close()
