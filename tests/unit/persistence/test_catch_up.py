"""What a follower believes: entries that follow, are whole, are of this cluster and of no older term, and open."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from piccolod.errors import StoreCorrupt, StoreUnavailable
from piccolod.protocol.log import CHUNK_BYTES, Entries, GetEntries, SealedEntry
from services.persistence.catch_up import as_sealed, on_the_wire
from services.persistence.entry import EntryHeader, entry_header, seal_entry
from services.persistence.log import Gap
from services.persistence.secret import SecretKey
from services.persistence.state import put
from services.persistence.verify import end_of, survey

from .conftest import CLUSTER
from .etcd_double import flipped
from .members import Members, Node, with_members


async def ten_and_a_follower(members: Members, *, locked: bool = False) -> tuple[Node, Node]:
    """The follower has 4 of 10."""
    n1, n2 = members.leader("n1"), members.node("n2", locked=locked)
    for number in range(4):
        await n1.put(f"a{number}", number)
    await n2.catch_up.to_head()
    for number in range(4, 10):
        await n1.put(f"a{number}", number)
    return n1, n2


def put_snapshot(members: Members, node: Node) -> None:
    """As the leader's upload, with nothing kept of the log behind it."""
    assert node.catch_up.ledger is not None
    sealed = node.catch_up.ledger.snapshot(1)
    data = msgspec.msgpack.encode(on_the_wire(sealed))
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    members.etcd.snapshot = (sealed.rev, chunks)
    for rev in [rev for rev in members.etcd.log if rev <= sealed.rev]:
        del members.etcd.log[rev]


def test_a_follower_shows_an_entry_once_its_own_file_has_it(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = await ten_and_a_follower(members)
        shown_at: list[int] = []
        show = n2.catch_up._on_commit

        def shown(folded: object) -> None:
            shown_at.append(end_of(n2.db, CLUSTER)[0].rev)
            show(folded)  # type: ignore[arg-type]

        n2.catch_up._on_commit = shown
        await n2.catch_up.to_head()
        assert [one.rev for one in n2.seen] == list(range(1, 11))
        assert shown_at == [10]
        assert n2.documents() == n1.documents()
        assert n2.catch_up.at_head

    with_members(tmp_path, work)


def test_a_follower_whose_disk_takes_nothing_shows_nothing(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        _, n2 = await ten_and_a_follower(members)
        assert n2.copy._log is not None
        n2.copy._log._db.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreUnavailable):
            await n2.catch_up.to_head()
        assert n2.rev == 4
        assert isinstance(n2.troubles[-1], StoreUnavailable)
        await n2.copy.recover()
        assert n2.troubles[-1] is None
        await n2.catch_up.to_head()
        assert n2.rev == 10

    with_members(tmp_path, work)


def spoiled(page: Entries, rev: int, spoil: Callable[[SealedEntry], SealedEntry | None]) -> Entries:
    entries = [spoil(entry) if entry.rev == rev else entry for entry in page.entries]
    return msgspec.structs.replace(page, entries=tuple(entry for entry in entries if entry is not None))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(flipped, id="a flipped byte of the sealed body"),
        pytest.param(lambda entry: flipped(entry, "header"), id="a flipped byte of the header"),
        pytest.param(lambda entry: flipped(entry, "nonce"), id="a flipped byte of the nonce"),
        pytest.param(lambda entry: flipped(entry, "digest"), id="a flipped byte of the digest"),
        pytest.param(lambda entry: None, id="a gap"),
        pytest.param(lambda entry: msgspec.structs.replace(entry, rev=3), id="a lower rev"),
        pytest.param(lambda entry: msgspec.structs.replace(entry, header=b"\xc1"), id="no header"),
    ],
)
@pytest.mark.parametrize("locked", [False, True])
def test_a_spoiled_entry_is_not_applied_is_named_and_is_fetched_again(
    tmp_path: Path, spoil: Callable[[SealedEntry], SealedEntry | None], locked: bool
) -> None:
    async def work(members: Members) -> None:
        _, n2 = await ten_and_a_follower(members, locked=locked)
        n2.consensus.spoil = lambda page: spoiled(page, 7, spoil)
        with pytest.raises(StoreCorrupt):
            await n2.catch_up.to_head()
        assert n2.rev == 6, "the last good one stays"
        assert "7" in n2.catch_up.problem
        assert not n2.catch_up.at_head
        assert end_of(n2.db, CLUSTER)[0].rev == 6, "nothing of it is filed"
        n2.consensus.spoil = lambda page: page
        await n2.catch_up.to_head()
        assert (n2.rev, n2.catch_up.problem) == (10, "")

    with_members(tmp_path, work)


def test_one_spoiled_answer_is_fetched_again_at_once(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        _, n2 = await ten_and_a_follower(members)
        answers = itertools.count()
        n2.consensus.spoil = lambda page: page if next(answers) else spoiled(page, 7, flipped)
        await n2.catch_up.to_head()
        assert n2.rev == 10
        fetched = [each.anew for each in n2.consensus.asked if isinstance(each, GetEntries)]
        assert fetched[-2:] == [False, True], "from etcd itself, not from what consensus remembers"

    with_members(tmp_path, work)


def forged(members: Members, key: SecretKey, **fields: object) -> SealedEntry:
    """Entry 11 of somebody who can write etcd. `fields` of the header are otherwise than they should be."""
    last = entry_header(as_sealed(members.etcd.log[10]))
    right = EntryHeader(CLUSTER, last.gen, 11, last.epoch, members.etcd.head_digest, "admin", 1, "")
    header = msgspec.structs.replace(right, **fields)
    return on_the_wire(seal_entry(key.cipher, header, [put("apps", "forged", {"v": 1})]))


@pytest.mark.parametrize(
    ("fields", "named", "also_locked"),
    [
        ({"cluster": "another"}, "another cluster", True),
        ({"epoch": 0}, "older term", True),
        ({"gen": 1}, "older term", True),
        ({"parent": bytes(32)}, "does not follow", True),
        ({"rev": 12}, "says that it is 12", True),
        ({}, "not sealed with this cluster's key", False),
    ],
)
@pytest.mark.parametrize("locked", [False, True])
def test_an_entry_that_is_whole_and_wrong_is_not_applied(
    tmp_path: Path, fields: dict[str, object], named: str, also_locked: bool, locked: bool
) -> None:
    async def work(members: Members) -> None:
        _, n2 = await ten_and_a_follower(members, locked=locked)
        key = members.key if fields else SecretKey.random()
        entry = msgspec.structs.replace(forged(members, key, **fields), rev=11)
        members.etcd.log[11] = entry
        members.etcd.head_rev, members.etcd.head_digest = 11, entry.digest
        if locked and not also_locked:
            await n2.catch_up.to_head()  # no key, no proof: the unlock finds it
            assert n2.rev == 11
            assert not survey(n2.db, CLUSTER, members.key, whole=False).ok
            return
        with pytest.raises(StoreCorrupt):
            await n2.catch_up.to_head()
        assert n2.rev == 10
        assert named in n2.catch_up.problem

    with_members(tmp_path, work)


def test_a_log_that_ends_below_this_nodes_or_is_another_one_undoes_nothing(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        _, n2 = await ten_and_a_follower(members)
        await n2.catch_up.to_head()
        etcd = members.etcd
        head = etcd.head_rev, etcd.head_digest
        etcd.head_rev, etcd.head_digest = 8, etcd.log[8].digest
        with pytest.raises(StoreCorrupt):
            await n2.catch_up.to_head()
        assert "ends at rev 8" in n2.catch_up.problem
        etcd.head_rev, etcd.head_digest = 10, etcd.log[8].digest
        with pytest.raises(StoreCorrupt):
            await n2.catch_up.to_head()
        assert n2.rev == 10
        etcd.head_rev, etcd.head_digest = head
        await n2.catch_up.to_head()
        assert n2.catch_up.problem == ""

    with_members(tmp_path, work)


def test_a_locked_member_files_sealed_entries_and_shows_them_after_the_unlock(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = await ten_and_a_follower(members, locked=True)
        await n2.catch_up.to_head()
        assert (n2.rev, n2.seen) == (10, [])
        n2.unlock()
        assert n2.documents() == n1.documents()
        await n1.put("after", 1)
        await n2.catch_up.to_head()
        assert [one.rev for one in n2.seen] == [11]

    with_members(tmp_path, work)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("before", [0, 4])
def test_a_member_that_is_far_behind_or_empty_takes_the_snapshot_and_the_tail(
    tmp_path: Path, before: int, locked: bool
) -> None:
    async def work(members: Members) -> None:
        n1 = members.leader()
        for number in range(10):
            await n1.put(f"a{number}", "x" * 60_000)
            if number + 1 == before:
                await members.node("n2", locked=locked).catch_up.to_head()
        n2 = members.nodes.get("n2") or members.node("n2", locked=locked)
        put_snapshot(members, n1)
        assert len(members.etcd.snapshot[1]) == 2, "more than one chunk"
        await n1.put("tail", 1)
        await n2.catch_up.to_head()
        assert n2.rev == 11
        if locked:
            n2.unlock()
        assert n2.documents() == n1.documents()
        assert n2.copy.meta.gaps == (Gap(before + 1, 10),)
        assert survey(n2.db, CLUSTER, members.key, whole=False).ok
        again = await members.restarted(n2)
        assert again.documents() == n1.documents()

    with_members(tmp_path, work)


def test_a_spoiled_snapshot_is_not_taken(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = await ten_and_a_follower(members)
        put_snapshot(members, n1)
        rev, chunks = members.etcd.snapshot
        members.etcd.snapshot = rev, [bytes([chunks[0][0]]) + flip_middle(chunks[0][1:])]
        with pytest.raises(StoreCorrupt):
            await n2.catch_up.to_head()
        assert n2.rev == 4
        members.etcd.snapshot = rev, chunks
        await n2.catch_up.to_head()
        assert n2.rev == 10

    with_members(tmp_path, work)


def test_a_snapshot_of_an_older_term_is_not_taken(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = await ten_and_a_follower(members)
        assert n1.catch_up.ledger is not None
        chain = n1.catch_up.ledger.chain
        epoch, chain.epoch = chain.epoch, 0
        put_snapshot(members, n1)
        with pytest.raises(StoreCorrupt):
            await n2.catch_up.to_head()
        assert n2.rev == 4
        chain.epoch = epoch
        put_snapshot(members, n1)
        await n2.catch_up.to_head()
        assert n2.rev == 10

    with_members(tmp_path, work)


def flip_middle(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_cluster_that_keeps_neither_the_entry_nor_a_snapshot_is_named(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        _, n2 = await ten_and_a_follower(members)
        del members.etcd.log[5]
        with pytest.raises(StoreCorrupt):
            await n2.catch_up.to_head()
        assert "entry 5" in n2.catch_up.problem
        assert n2.rev == 4

    with_members(tmp_path, work)


def test_a_hint_that_comes_twice_or_out_of_order_changes_nothing(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = await ten_and_a_follower(members)
        await asyncio.gather(*(n2.catch_up.to_head() for _ in range(5)), n1.put("more", 1))
        await n2.catch_up.to_head()
        assert [one.rev for one in n2.seen] == list(range(1, 12))

    with_members(tmp_path, work)


def test_pages_are_taken_until_the_head_is_reached(tmp_path: Path) -> None:
    async def work(members: Members) -> None:
        n1, n2 = members.leader(), members.node("n2")
        await asyncio.gather(*(n1.put(f"a{n}", n) for n in range(700)))
        await n2.catch_up.to_head()
        assert (n2.rev, n2.documents()) == (700, n1.documents())

    with_members(tmp_path, work)
