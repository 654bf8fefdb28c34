"""What a crash of a recovery left is put back whole, or brought to its end, and done again it does the same."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog

from piccolod import durable, etcd_conf
from piccolod.errors import Invalid
from piccolod.leadership.events import Memory
from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember
from services.consensus import members_file
from services.consensus.joining.recovery_journal import Journal, JournalFile, Stage, finish, set_aside, settle
from services.consensus.memory import MemoryFile

FORMER = etcd_conf.Settings("n1", "http://10.0.0.1:2380", "http://10.0.0.1:2379", "former")
NEW = etcd_conf.Settings("n1", "http://10.0.0.1:2380", "http://10.0.0.1:2379", "new")
OWN = KnownMember(address="10.0.0.1", client_url="http://10.0.0.1:2379", rpc="10.0.0.1:7444")
OTHER = KnownMember(address="10.0.0.2", client_url="http://10.0.0.2:2379", rpc="10.0.0.2:7444")
BEFORE, AFTER = Memory(5, 1000, 3), Memory(6, 9, 4)
LOG = structlog.get_logger()


class Killed(BaseException):
    pass


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(state=tmp_path / "state", run=tmp_path / "run")
    paths.cluster.mkdir(parents=True)
    (paths.etcd_data / "member").mkdir(parents=True)
    (paths.etcd_data / "member" / "db").write_text("former")
    etcd_conf.write(FORMER, paths.etcd_conf)
    members_file.write(paths, {"n1": OWN, "n2": OTHER})
    MemoryFile(paths.cluster / "seen.json").write(BEFORE)
    return paths


def begin(paths: Paths) -> Journal:
    journal = Journal(stage=Stage.MOVING, aside="etcd.before-1", etcd=paths.etcd_conf.read_text(), former=("n2",))
    JournalFile(paths).write(journal)
    return journal


def fill(paths: Paths) -> None:
    """As a new etcd does whose settings were written."""
    etcd_conf.write(NEW, paths.etcd_conf)
    (paths.etcd_data / "member").mkdir(parents=True)
    (paths.etcd_data / "member" / "db").write_text("new")


def settled(paths: Paths) -> None:
    """The next start of consensus."""

    async def done() -> None: ...

    supervised: Any = SimpleNamespace(etcd_as_written=done, etcd_gone=done)
    asyncio.run(settle(paths, supervised, LOG))


def is_as_before(paths: Paths) -> None:
    assert JournalFile(paths).read() is None
    assert etcd_conf.read(paths.etcd_conf) == FORMER
    assert (paths.etcd_data / "member" / "db").read_text() == "former"
    assert members_file.read(paths) == {"n1": OWN, "n2": OTHER}
    assert MemoryFile(paths.cluster / "seen.json").read() == BEFORE
    assert sorted(each.name for each in paths.state.iterdir()) == ["cluster", "etcd"]


@pytest.mark.parametrize("step", ["journal", "no settings", "aside", "settings", "filled"])
def test_before_the_commit_the_former_etcd_is_put_back(paths: Paths, step: str) -> None:
    journal = begin(paths)
    if step != "journal":
        paths.etcd_conf.unlink()
    if step in ("aside", "settings", "filled"):
        set_aside(paths, journal)
    if step == "settings":
        etcd_conf.write(NEW, paths.etcd_conf)
    if step == "filled":
        fill(paths)
    settled(paths)
    is_as_before(paths)


@pytest.mark.parametrize("step", ["rmtree", "rename", "replace", "unlink"])
def test_a_crash_while_it_is_put_back_is_made_up_for_by_the_next_start(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    set_aside(paths, begin(paths))
    fill(paths)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "unlink":
            patch.setattr(JournalFile, "remove", killed)
        else:
            patch.setattr(
                *{"rmtree": (shutil, "rmtree"), "rename": (Path, "rename"), "replace": (durable, "replace")}[step], killed
            )
        with pytest.raises(Killed):
            settled(paths)
    settled(paths)
    is_as_before(paths)


def test_an_etcd_without_data_is_put_back_without_data(paths: Paths) -> None:
    shutil.rmtree(paths.etcd_data)
    set_aside(paths, begin(paths))
    fill(paths)
    settled(paths)
    assert list(paths.etcd_data.iterdir()) == [] and not (paths.state / "etcd.before-1").exists()


@pytest.mark.parametrize("crash", [None, "former.json", "members.json", "seen.json", "recovery.json"])
def test_after_the_commit_the_node_knows_itself_alone(paths: Paths, monkeypatch: pytest.MonkeyPatch, crash: str | None) -> None:
    journal = begin(paths)
    set_aside(paths, journal)
    fill(paths)
    JournalFile(paths).write(msgspec.structs.replace(journal, stage=Stage.BEGUN, members={"n1": OWN}, memory=AFTER))
    replace = durable.replace

    def until_then(file: Path, content: bytes, **more: Any) -> None:
        if file.name == crash:
            raise Killed
        replace(file, content, **more)

    if crash is not None:
        with monkeypatch.context() as patch:
            patch.setattr(durable, "replace", until_then)
            with pytest.raises(Killed):
                settled(paths)
    settled(paths)
    assert members_file.read(paths) == {"n1": OWN}
    assert members_file.with_former(paths) == {"n1": OWN, "n2": OTHER}, "who may have been recovered as well is still found"
    assert MemoryFile(paths.cluster / "seen.json").read() == AFTER
    assert (paths.etcd_data / "member" / "db").read_text() == "new"
    assert (paths.state / "etcd.before-1" / "member" / "db").read_text() == "former", "nothing is deleted"
    left = JournalFile(paths).read()
    assert left is not None and (left.stage, left.former) == (Stage.SETTLED, ("n2",))


def test_whom_an_earlier_recovery_has_not_forgotten_is_still_to_be_forgotten_when_it_is_put_back(paths: Paths) -> None:
    journal = msgspec.structs.replace(begin(paths), former=("n2", "n3"), owed=("n3",))
    JournalFile(paths).write(journal)
    set_aside(paths, journal)
    fill(paths)
    settled(paths)
    left = JournalFile(paths).read()
    assert left is not None and (left.stage, left.former) == (Stage.SETTLED, ("n3",))
    assert etcd_conf.read(paths.etcd_conf) == FORMER


def test_what_has_come_since_a_recovery_is_not_undone_by_the_next_start(paths: Paths) -> None:
    journal = msgspec.structs.replace(begin(paths), stage=Stage.BEGUN, members={"n1": OWN}, memory=AFTER)
    finish(paths, journal)
    members_file.write(paths, {"n1": OWN, "n4": OTHER})
    settled(paths)
    assert members_file.read(paths) == {"n1": OWN, "n4": OTHER}


def test_a_damaged_journal_is_named_and_nothing_is_touched(paths: Paths) -> None:
    set_aside(paths, begin(paths))
    (paths.cluster / "recovery.json").write_text("{}")
    with pytest.raises(Invalid, match=r"recovery\.json"):
        settled(paths)
    assert (paths.state / "etcd.before-1").exists()
    assert os.stat(paths.cluster / "recovery.json").st_size == 2
