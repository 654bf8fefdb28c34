from __future__ import annotations

import fcntl
import os

import pytest

from piccolod import cluster_mode
from piccolod.cluster_mode import Mode
from piccolod.errors import Busy
from piccolod.leadership import leash_table
from piccolod.leadership.after_crash import after_crash
from piccolod.leadership.page import PageReader, PageWriter, Term
from piccolod.paths import Paths

from .conftest import Containers, a_page, armed, assert_alive


def test_beside_a_live_supervisor_it_refuses(paths: Paths) -> None:
    lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(Busy, match="supervisor runs"):
        after_crash(paths)
    os.close(lock)
    assert "nothing to do" in after_crash(paths)


def test_alone_it_leaves_containers_table_and_page_as_they_are(
    paths: Paths, page_writer: PageWriter, containers: Containers
) -> None:
    paths.lock.touch()
    before = page_writer.write(a_page({"app:notes": Term(7, 1)}))
    init, everyone = containers.in_pid_namespace()
    entry = armed(paths, init)
    assert "1 led container(s) run on" in after_crash(paths)
    assert_alive(everyone)
    assert leash_table.read(paths.leash) == {entry.file: entry}
    assert PageReader(paths.page).read() == before


def test_a_member_of_a_cluster_is_not_called_alone(paths: Paths) -> None:
    paths.lock.touch()
    cluster_mode.make_folder(paths.cluster)
    cluster_mode.enter(paths.cluster, Mode(cluster="c", node="n1", since_ms=1))
    assert after_crash(paths).startswith("nothing is released")


def test_no_supervisor_starts_while_it_works(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.lock.touch()
    seen = []

    def look(_: object) -> dict[str, leash_table.Entry]:
        other = os.open(paths.lock, os.O_RDWR)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seen.append("locked")
        finally:
            os.close(other)
        return {}

    monkeypatch.setattr(leash_table, "read", look)
    after_crash(paths)
    assert seen == ["locked"]


def test_where_nothing_ever_ran_it_has_nothing_to_do(paths: Paths) -> None:
    assert "has not run" in after_crash(paths)
    assert not paths.lock.exists()
