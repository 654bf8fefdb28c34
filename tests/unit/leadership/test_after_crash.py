from __future__ import annotations

import fcntl
import json
import os
import signal
import socket

import pytest

from piccolod import clock
from piccolod.errors import Busy, StoreUnavailable, TermOver
from piccolod.leadership import after_crash as hook
from piccolod.leadership import leash_table
from piccolod.leadership.after_crash import after_crash
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import Page, PageReader, PageWriter, Term, create
from piccolod.paths import Paths

from .conftest import Containers, Leashes, a_page, armed, assert_alive, gone, wait_for

TERMS = {"kernel": Term(5, 1), "app:notes": Term(7, 1)}


class Release:
    """Stands for etcd: notes what was still alive and open when the terms were to be released."""

    def __init__(self, paths: Paths, pids: list[int] | None = None) -> None:
        self._paths = paths
        self._pids = pids or []
        self.calls: list[frozenset[str]] = []

    def __call__(self, paths: Paths, unproven: frozenset[str]) -> str:
        self.calls.append(unproven)
        page = shown(self._paths)
        assert (page.sid, dict(page.terms)) == (0, {}), "the page is shut before anything is released"
        assert not [pid for pid in self._pids if not gone(pid)], "nothing lives when something is released"
        assert not lock_is_free(self._paths), "no supervisor starts meanwhile"
        return "released"


def never(_paths: Paths, _unproven: frozenset[str]) -> str:
    raise AssertionError("something was released")


def alone(_paths: Paths) -> bool:
    """The others have no quorum."""
    return False


def shown(paths: Paths) -> Page:
    reader = PageReader(paths.page)
    page = reader.read()
    reader.close()
    assert page is not None
    return page


def lock_is_free(paths: Paths) -> bool:
    other = os.open(paths.lock, os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(other)
    return True


def crashed(paths: Paths, *, hard_in_s: float = 60.0, members: int = 3, sid: int = 5, terms: dict[str, Term] = TERMS) -> Page:
    """What a member leaves whose whole tree has died in the middle of its terms."""
    paths.lock.touch()
    paths.cluster.mkdir(parents=True)
    (paths.cluster / "mode").touch()
    known = {f"n{number}": {"address": "", "client_url": ""} for number in range(1, members + 1)}
    (paths.cluster / "members.json").write_text(json.dumps(known))
    create(paths.page)
    writer = PageWriter(paths.page)
    page = writer.write(a_page(terms, clock.now() + hard_in_s, sid))
    writer.close()
    return page


# --- a node alone, and no node at all


def test_beside_a_live_supervisor_it_refuses(paths: Paths) -> None:
    lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(Busy, match="supervisor runs"):
        after_crash(paths, never, alone)
    os.close(lock)
    assert "nothing to do" in after_crash(paths, never, alone)


def test_alone_it_leaves_containers_table_and_page_as_they_are(
    paths: Paths, page_writer: PageWriter, containers: Containers
) -> None:
    paths.lock.touch()
    before = page_writer.write(a_page({"app:notes": Term(7, 1)}))
    init, everyone = containers.in_pid_namespace()
    entry = armed(paths, init)
    assert "1 led container(s) run on" in after_crash(paths, never, alone)
    assert_alive(everyone)
    assert leash_table.read(paths.leash) == {entry.file: entry}
    assert PageReader(paths.page).read() == before


def test_where_nothing_ever_ran_it_has_nothing_to_do(paths: Paths) -> None:
    assert "has not run" in after_crash(paths, never, alone)
    assert not paths.lock.exists()


# --- a member


def test_a_member_releases_only_once_the_page_is_shut_and_all_that_it_led_is_dead(paths: Paths, containers: Containers) -> None:
    crashed(paths)
    init, everyone = containers.in_pid_namespace()
    armed(paths, init)
    release = Release(paths, everyone)
    assert after_crash(paths, release, alone) == "released"
    assert release.calls == [frozenset()]
    with pytest.raises(TermOver):
        Gate(PageReader(paths.page)).check("kernel")
    assert lock_is_free(paths)


@pytest.mark.parametrize(
    ("mode", "members", "released"),
    [("external", 1, False), ("external", 2, True), ("managed", 2, False), ("managed", 3, True)],
)
def test_it_releases_where_the_others_lead_on_without_this_node(paths: Paths, mode: str, members: int, released: bool) -> None:
    """Of two members of etcd none survives the other; one of an owner is elsewhere."""
    before = crashed(paths, members=members)
    (paths.cluster / "mode").write_text(json.dumps({"etcd": mode}))
    said = after_crash(paths, Release(paths) if released else never, alone)
    assert (said == "released") is released
    assert (shown(paths) != before) is released


def test_what_does_not_die_is_not_released(paths: Paths, containers: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(paths)
    init, everyone = containers.in_pid_namespace()
    armed(paths, init)
    monkeypatch.setattr(hook, "_PROOF_S", 0.1)
    monkeypatch.setattr(leash_table, "kill", lambda entry: None)  # as on a disk that never answers (state D)
    release = Release(paths)
    after_crash(paths, release, alone)
    assert release.calls == [frozenset({"app:notes"})]
    assert_alive(everyone)


def test_the_kernel_is_not_released_while_persistence_has_a_process(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(paths)
    paths.bus.mkdir()
    monkeypatch.setattr(hook, "_PROOF_S", 0.1)
    release = Release(paths)
    with socket.socket(socket.AF_UNIX) as persistence:
        persistence.bind(str(paths.command_socket("persistence")))
        persistence.listen()
        after_crash(paths, release, alone)
    after_crash(paths, release, alone)
    assert release.calls == [frozenset({"kernel"}), frozenset()]


def test_beside_a_consensus_that_lives_nothing_is_killed_and_nothing_released(
    paths: Paths, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = crashed(paths)
    init, everyone = containers.in_pid_namespace()
    armed(paths, init)
    monkeypatch.setattr(hook, "_WRITER_S", 0.1)
    consensus = PageWriter(paths.page)
    assert "consensus lives" in after_crash(paths, never, alone)
    consensus.close()
    assert_alive(everyone)
    assert shown(paths) == before


def test_kill_9_of_it_in_the_middle_leaves_a_shut_page_and_the_next_one_goes_on(paths: Paths) -> None:
    crashed(paths)
    child = os.fork()
    if child == 0:
        after_crash(paths, lambda *_: str(os.kill(os.getpid(), signal.SIGKILL)), alone)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert shown(paths).sid == 0
    release = Release(paths)
    assert after_crash(paths, release, alone) == "released"
    assert release.calls == [frozenset()]


def test_an_etcd_that_does_not_answer_is_told_in_one_line(paths: Paths) -> None:
    crashed(paths)

    def silent(_paths: Paths, _unproven: frozenset[str]) -> str:
        raise StoreUnavailable("etcd cannot be reached")

    assert after_crash(paths, silent, alone) == (
        "released nothing, others lead once this node's span has passed: etcd cannot be reached"
    )
    assert shown(paths).sid == 0


@pytest.mark.parametrize(("hard_in_s", "members", "why"), [(clock.FOREVER, 3, "no other node"), (60.0, 2, "no quorum")])
def test_where_nobody_could_take_over_all_runs_on(
    paths: Paths, containers: Containers, hard_in_s: float, members: int, why: str
) -> None:
    before = crashed(paths, hard_in_s=hard_in_s, members=members)
    init, everyone = containers.in_pid_namespace()
    armed(paths, init)
    said = after_crash(paths, never, alone)
    assert why in said and "1 led container(s) run on" in said
    assert_alive(everyone)
    assert shown(paths) == before


def test_of_two_the_one_that_the_other_does_not_need_is_released(paths: Paths) -> None:
    """It was a learner of etcd, or is not needed for another reason."""
    crashed(paths, members=2)
    release = Release(paths)
    assert after_crash(paths, release, lambda _: True) == "released"


# --- a planned end

APPS = {"app:notes": Term(7, 1)}


@pytest.fixture
def stopped(paths: Paths, containers: Containers, leashes: Leashes) -> list[int]:
    """A member that was told to end, and gave the kernel away: an app of it runs, guarded. The processes of that."""
    crashed(paths, terms=APPS)
    init, everyone = containers.in_pid_namespace()
    armed(paths, init)
    leashes.start_all()
    return everyone


@pytest.mark.parametrize(
    ("result", "code", "status", "planned"),
    [
        ("success", "exited", "0", True),
        ("success", "killed", "TERM", False),  # nobody ends it in order then
        ("exit-code", "exited", "1", False),
        ("signal", "killed", "KILL", False),
        ("watchdog", "dumped", "ABRT", False),
        ("timeout", "killed", "KILL", False),
        ("timeout", "exited", "0", False),
        ("oom-kill", "exited", "0", False),
        ("", "", "", False),
    ],
)
def test_a_planned_end_is_what_the_service_manager_calls_one(result: str, code: str, status: str, planned: bool) -> None:
    assert hook.is_planned({"SERVICE_RESULT": result, "EXIT_CODE": code, "EXIT_STATUS": status}) is planned
    assert not hook.is_planned({})


def test_after_a_planned_end_containers_run_on_until_their_deadline_for_a_start_that_adopts_them(
    paths: Paths, stopped: list[int]
) -> None:
    before = shown(paths)
    said = after_crash(paths, never, alone, planned=True)
    assert said.startswith("left as it is after a planned end: for ") and "1 led container(s) run on" in said
    assert_alive(stopped)
    assert shown(paths) == before
    writer = PageWriter(paths.page)
    writer.write(a_page(APPS, clock.now() + 0.2, before.sid))
    writer.close()
    wait_for(lambda: all(gone(pid) for pid in stopped), "the leashes end them at the deadline")


def test_the_same_after_a_crash_ends_them(paths: Paths, stopped: list[int]) -> None:
    assert after_crash(paths, Release(paths, stopped), alone) == "released"


@pytest.mark.parametrize("left", ["a leash", "the kernel", "the session", "the term", "the deadline"])
def test_an_end_that_is_called_planned_and_left_something_undone_is_a_crash(
    paths: Paths, stopped: list[int], leashes: Leashes, left: str
) -> None:
    soon = clock.now() + 60.0
    pages = {
        "the kernel": a_page(TERMS, soon, 5), "the session": a_page(APPS, soon, 0),
        "the term": a_page({"app:notes": Term(8, 2)}, soon, 5), "the deadline": a_page(APPS, clock.now() - 1.0, 5),
    }  # fmt: skip
    if left == "a leash":
        leashes.kill(1)
    else:
        leashes.close()  # which would be as quick as the hook
        writer = PageWriter(paths.page)
        writer.write(pages[left])
        writer.close()
        leashes.start_all()
    assert after_crash(paths, Release(paths, stopped), alone, planned=True) == "released"


def test_after_a_planned_end_without_containers_the_session_ends_at_once(paths: Paths) -> None:
    crashed(paths, terms=APPS)
    assert after_crash(paths, Release(paths), alone, planned=True) == "released"


# --- pages that say nothing


def test_a_page_of_another_boot_is_nothing_to_it(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = crashed(paths)
    monkeypatch.setattr(clock, "boot_id", lambda: "f" * 36)
    assert "nothing to do" in after_crash(paths, never, alone)
    assert shown(paths) == before


def test_without_a_page_it_has_nothing_to_go_by(paths: Paths) -> None:
    crashed(paths)
    paths.page.unlink()
    assert "nothing to do" in after_crash(paths, never, alone)
