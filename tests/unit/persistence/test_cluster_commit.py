"""The log of the cluster is the only commit point: what it took is acknowledged, what it did not take never is."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from piccolod.errors import Conflict, NotLeader, StoreFull, StoreUnavailable
from services.persistence.catch_up import as_sealed
from services.persistence.entry import entry_header
from services.persistence.log import FORMAT, LogFile, Meta
from services.persistence.store import Store
from services.persistence.verify import end_of

from .conftest import CLUSTER
from .etcd_double import GEN
from .house import until
from .members import Members, with_members


def test_a_write_is_committed_in_etcd_shown_and_then_filed(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        assert await n1.put("a", 1) == 1
        assert (members.etcd.head_rev, members.etcd.head_digest) == (1, n1.catch_up.end.digest)
        assert [one.rev for one in n1.seen] == [1]
        await until(lambda: end_of(n1.db, CLUSTER)[0].rev == 1, "the file follows")

    with_members(tmp_path, work)


def test_writers_at_once_share_appends_and_each_has_a_rev_of_its_own(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        revs = await asyncio.gather(*(n1.put(f"a{n}", n) for n in range(100)))
        assert sorted(revs) == list(range(1, 101))
        assert members.etcd.appends < 20

    with_members(tmp_path, work)


def test_the_append_names_the_token_of_the_term_and_the_head_that_was_seen(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 1)
        await n1.put("b", 1)
        sent = [asked for asked in n1.consensus.asked if type(asked).__name__ == "Append"]
        assert n1.gate.token is not None
        assert [(a.token, a.head_rev, a.head_digest) for a in sent] == [
            (n1.gate.token.token, 0, bytes(32)),
            (n1.gate.token.token, 1, members.etcd.log[1].digest),
        ]

    with_members(tmp_path, work)


def test_a_leader_has_all_that_was_committed_before_it_decides_anything(tmp_path: Path) -> None:
    """Its precondition, its retry and its empty write are judged against the former leader's last entry."""

    async def work(members: Members) -> None:
        n1, n2 = members.leader("n1"), members.node("n2")
        await n1.put("a", 1, idem="k")
        n1.gate.token = None
        n2.lead()
        assert await n2.put("a", 2, expect={("apps", "a"): 1}) == 2
        with pytest.raises(Conflict):
            await n2.put("a", 3, expect={("apps", "a"): 0})
        assert await n2.put("a", 2) == 2, "nothing changes"
        assert await n2.put("a", 1, idem="k") == 1, "the same write again"

    with_members(tmp_path, work)


def test_a_stale_leader_writes_nothing_and_says_who_leads(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = members.leader("n1"), members.node("n2")
        await n1.put("a", 1)
        n2.lead()  # n1's page still shows its old term
        with pytest.raises(NotLeader) as caught:
            await n1.put("a", "stale")
        assert caught.value.leader is not None
        assert (caught.value.leader.node, caught.value.leader.epoch) == ("n2", 2)
        assert members.etcd.head_rev == 1
        assert n1.rev == 1

    with_members(tmp_path, work)


def test_what_repairs_lost_while_the_node_was_alone_is_in_no_gen_of_the_cluster(tmp_path: Path) -> None:
    """Another member would refuse to write under its own, lower one."""

    async def work(members: Members) -> None:
        Store.create(tmp_path / "n1" / "control.db", CLUSTER)
        log = LogFile(tmp_path / "n1" / "control.db")
        log.replace_meta(Meta(FORMAT, CLUSTER, losses=3))
        log.close()
        n1 = members.leader()
        await n1.put("a", 1)
        assert entry_header(as_sealed(members.etcd.log[1])).gen == GEN

    with_members(tmp_path, work)


def test_an_entry_of_another_at_the_same_rev_is_caught_up_and_the_write_is_decided_again(tmp_path: Path) -> None:
    """As after a restart of this module: what it sent in its former life comes now."""

    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 1)
        twin = members.nodes["n1"]
        other = members.node("n1-former")
        other.gate.token = twin.gate.token
        await other.put("b", 1)  # under the very same term
        assert await n1.put("c", 1) == 3
        with pytest.raises(Conflict):
            await n1.put("b", 2, expect={("apps", "b"): 0})
        assert n1.documents().keys() == {("apps", "a"), ("apps", "b"), ("apps", "c")}

    with_members(tmp_path, work)


def test_a_full_etcd_and_one_without_a_quorum_are_told_apart_and_nothing_is_written(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 1)
        members.etcd.full = True
        with pytest.raises(StoreFull):
            await n1.put("a", 2)
        assert n1.fulls == 1
        members.etcd.full, members.etcd.down = False, True
        with pytest.raises(StoreUnavailable):
            await n1.put("a", 2)
        members.etcd.down = False
        assert n1.rev == 1
        assert await n1.put("a", 2) == 2

    with_members(tmp_path, work)


def test_what_the_own_disk_does_not_take_is_committed_all_the_same_and_filed_later(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 1)
        await until(lambda: n1.copy.chain.rev == 1, "filed")
        assert n1.copy._log is not None
        n1.copy._log._db.execute("PRAGMA query_only = ON")  # it fails every write, as on a disk that became read-only
        assert await n1.put("a", 2) == 2
        await until(lambda: [type(trouble) for trouble in n1.troubles] == [StoreUnavailable], "the disk's trouble is told")
        assert await n1.put("a", 3) == 3
        await n1.commits.recover()
        assert n1.troubles[-1] is None
        assert end_of(n1.db, CLUSTER)[0].rev == 3

    with_members(tmp_path, work)


def test_a_write_that_was_not_filed_before_a_crash_is_fetched_again(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        await n1.put("a", 1)
        await until(lambda: n1.copy.chain.rev == 1, "filed")
        saved = tmp_path / "saved"
        shutil.copytree(n1.db.parent, saved)
        await n1.put("a", 2)
        await n1.close()
        shutil.rmtree(n1.db.parent)
        shutil.copytree(saved, n1.db.parent)  # as a power loss leaves a file that is not synced
        again = members.node("n1")
        assert again.rev == 1
        await again.catch_up.to_head()
        assert again.documents()["apps", "a"][0] == 2

    with_members(tmp_path, work)


def test_a_term_older_than_the_last_entry_writes_nothing(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        members.etcd.epoch = 5
        n1.lead()
        await n1.put("a", 1)
        assert n1.gate.token is not None
        n1.gate.token = n1.gate.token._replace(epoch=3)
        n1.leader = members.etcd.hint()
        with pytest.raises(NotLeader):
            await n1.put("a", 2)
        assert members.etcd.head_rev == 1

    with_members(tmp_path, work)
