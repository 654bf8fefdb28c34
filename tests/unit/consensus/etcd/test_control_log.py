"""The sealed log in etcd: what is refused, what is unknown, what is trimmed, and an etcd that was restored."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from piccolod import etcd_conf
from piccolod.errors import Conflict, Invalid, NotFound, NotLeader, OutcomeUnknown, StoreFull, StoreRestored, StoreUnavailable
from piccolod.leadership import keys
from piccolod.leadership.actions import RESTORED_HINT
from piccolod.protocol.consensus import Campaign, Closing, Term, Withdraw
from piccolod.protocol.log import (
    CHUNK_BYTES,
    Append,
    GetEntries,
    GetHead,
    GetKeyset,
    GetSnapshot,
    GetSnapshotChunk,
    PutKeyset,
    PutSnapshot,
    SealedEntry,
    SnapshotInfo,
)
from services.consensus import members_file, seed
from services.consensus.etcd import status
from services.consensus.log_trim import KEPT_REVS
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import eventually, opened
from tests.unit.consensus.etcd.member import GEN, House, Live, Node, house, living
from tests.unit.consensus.etcd.proxy import Proxy
from tests.unit.consensus.etcd.test_status import restore

ENTRY_BYTES = 300 * 1024


def entry(rev: int, size_bytes: int = 200) -> SealedEntry:
    body = os.urandom(size_bytes)
    return SealedEntry(rev, b"header", b"nonce", body, hashlib.sha256(body).digest())


async def append(live: Live, term: Term, *entries: SealedEntry, after: bytes = b"") -> None:
    await live.ask(Append(token=term.token, head_rev=entries[0].rev - 1, head_digest=after, entries=entries))


def test_entries_are_read_on_every_node_as_they_were_appended(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            assert (await two.ask(GetHead())).rev == 0
            entries = [entry(rev) for rev in range(1, 101)]
            await append(one, term, *entries[:1])
            await append(one, term, *entries[1:60], after=entries[0].digest)
            await append(one, term, *entries[60:], after=entries[59].digest)
            head = await two.ask(GetHead())
            assert (head.rev, head.digest, head.token) == (100, entries[-1].digest, term.token)
            found = await two.ask(GetEntries(after=10, anew=True))
            assert (list(found.entries), found.first_rev) == (entries[10:], 1)
            assert [each.rev for each in (await two.ask(GetEntries(after=10, limit=3))).entries] == [11, 12, 13]
            assert [each.rev for each in (await two.ask(GetEntries(after=10, limit_bytes=1))).entries] == [11], "one at least"
            assert (await two.ask(GetEntries(after=100))).entries == ()
            await eventually(lambda: two.revs()[-1:] == [100], "the hint reaches the follower")

    asyncio.run(main())


def test_a_follower_has_what_the_watch_brought_without_asking_etcd_again(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            entries = [entry(rev) for rev in range(1, 4)]
            await append(one, term, *entries)
            await eventually(lambda: two.revs() == [3], "the hint reaches the follower")
            for member in home.etcd.members:
                member.freeze()
            try:
                found = await two.ask(GetEntries(after=1))
                assert (list(found.entries), found.first_rev) == (entries[1:], 2)
                with pytest.raises(StoreUnavailable):
                    await two.ask(GetEntries(after=1, anew=True))
            finally:
                for member in home.etcd.members:
                    member.thaw()

    asyncio.run(main())


def test_a_hint_that_the_watch_lost_is_given_by_the_poll(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            await eventually(lambda: two.leaser.driver.state.viewed, "the follower reads")
            two.leaser.driver.facts.watched = lambda _changes: None  # type: ignore[method-assign]
            await append(one, term, entry(1))
            await eventually(lambda: two.revs() == [1], "the follower hears of it", 1.2)

    asyncio.run(main())


def test_what_does_not_follow_the_head_is_a_conflict_and_changes_nothing(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
            one = entry(1)
            await append(live, term, one)
            with pytest.raises(Conflict):
                await append(live, term, entry(1))
            with pytest.raises(Conflict):
                await append(live, term, entry(2), after=b"another digest")
            with pytest.raises(Conflict):
                await append(live, term, entry(3), after=one.digest)
            with pytest.raises(Invalid):
                await append(live, term, entry(2), entry(4), after=one.digest)
            assert (await live.ask(GetHead())).rev == 1

    asyncio.run(main())


def test_an_append_of_a_lost_token_is_refused_by_etcd_itself_and_names_who_leads(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            old = await one.lead()
            await append(one, old, genesis := entry(1))
            await one.ask(Closing(resource="kernel", token=old.token))
            with pytest.raises(NotLeader):
                await append(one, old, entry(2), after=genesis.digest)
            await one.ask(Withdraw(resource="kernel", token=old.token))
            new = await two.lead()
            # As if this node had not heard of it: the page and the core still say that it leads.
            driver = one.leaser.driver
            await eventually(lambda: driver.state.view.epochs["kernel"].mod == new.token, "the old leader has seen the new one")
            with pytest.raises(NotLeader) as refused:
                await append(one, old, entry(2), after=genesis.digest)
            assert refused.value.leader is not None and refused.value.leader.node == "n2"
            await append(two, new, second_entry := entry(2), after=genesis.digest)
            assert (await one.ask(GetEntries(after=1))).entries == (second_entry,)

    asyncio.run(main())


def test_an_append_whose_token_was_taken_meanwhile_fails_its_compare(home: House) -> None:
    """The core still holds the term when it sends: only etcd knows better."""

    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
            store = live.leaser.driver.store
            commit, taken = store.commit, False

            async def late(transaction, within_s):  # type: ignore[no-untyped-def]
                nonlocal taken
                if any(put.key == keys.KERNEL_HEAD for put in transaction.puts) and not taken:
                    taken = True
                    key = home.prefix + "epoch/kernel"
                    async with opened(home.etcd) as client:
                        from services.consensus.etcd.transaction import Put, Range, Transaction

                        (item,) = (await client.find(Range(key), 2))[0].keys
                        await client.transact(Transaction((), (Put(key, item.value),)))
                return await commit(transaction, within_s)

            store.commit = late  # type: ignore[method-assign]
            with pytest.raises(NotLeader):
                await append(live, term, entry(1))
            assert (await live.ask(GetHead())).rev == 0

    asyncio.run(main())


def test_an_append_whose_answer_is_lost_is_unknown_and_the_head_settles_it(home: House) -> None:
    async def main() -> None:
        async with Proxy(home.etcd.endpoints[0]) as proxy:
            node = await behind(home, proxy)
            async with living(node) as live:
                term = await live.lead()
                await append(live, term, genesis := entry(1))
                proxy.loses_answers = True
                with pytest.raises(OutcomeUnknown):
                    await append(live, term, lost := entry(2), after=genesis.digest)
                proxy.loses_answers = False
                proxy.cut()

                async def head() -> object:
                    with contextlib.suppress(StoreUnavailable):
                        return await live.ask(GetHead())
                    return None

                seen = await eventually(head, "etcd answers again")
                assert (seen.rev, seen.digest, seen.token) == (2, lost.digest, term.token)
                assert node.token() == term.token, "a fault shorter than the budget changes nothing"
                await eventually(lambda: live.revs()[-1] == 2, "the watch goes on")
                await append(live, term, entry(3), after=lost.digest)

    asyncio.run(main())


async def behind(home: House, proxy: Proxy) -> Node:
    """A node that reaches etcd through the proxy alone."""
    node = Node(home.folder / "n1", 0)
    record = node.make(home.cluster, home.etcd)
    url = f"http://{proxy.endpoint}"
    settings = etcd_conf.read(node.paths.etcd_conf)
    assert settings is not None
    etcd_conf.write(dataclasses.replace(settings, client_url=url), node.paths.etcd_conf)
    members_file.write(node.paths, {})
    async with opened(home.etcd) as client:
        await seed.put_gen(client, home.prefix, GEN)
        await seed.put_node(client, home.prefix, "n1", msgspec.structs.replace(record, client_url=url))
    return node


def test_without_etcd_an_append_was_surely_not_made(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
            for member in home.etcd.members:
                member.kill()
            with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                await append(live, term, entry(1))  # the channel may not have noticed yet
            with pytest.raises(StoreUnavailable):
                await append(live, term, entry(1))

    asyncio.run(main())


# --- the keyset


def test_the_keyset_is_replaced_only_in_the_place_of_the_one_that_was_seen(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
            none = await live.ask(GetKeyset())
            assert (none.keyset, none.mod) == (b"", 0)
            await live.ask(PutKeyset(token=term.token, seen_mod=0, keyset=b"one"))
            first = await live.ask(GetKeyset())
            assert first.keyset == b"one"
            with pytest.raises(Conflict):
                await live.ask(PutKeyset(token=term.token, seen_mod=0, keyset=b"two"))
            await live.ask(PutKeyset(token=term.token, seen_mod=first.mod, keyset=b"two"))
            second = await live.ask(GetKeyset())
            assert second.keyset == b"two" and second.mod > first.mod
            with pytest.raises(NotLeader):
                await live.ask(PutKeyset(token=term.token - 1, seen_mod=second.mod, keyset=b"three"))

    asyncio.run(main())


# --- snapshots, and the bounds of the log


async def put_snapshot(live: Live, term: Term, rev: int, chunks: list[bytes]) -> None:
    for index, data in enumerate(chunks):
        await live.ask(PutSnapshot(token=term.token, rev=rev, index=index, chunks=len(chunks), data=data))


def test_a_snapshot_counts_once_it_is_whole_and_the_log_is_trimmed_behind_it(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
            digest = b""
            for first in range(1, 241, 60):
                entries = [entry(rev) for rev in range(first, first + 60)]
                await append(live, term, *entries, after=digest)
                digest = entries[-1].digest
            chunks = [os.urandom(CHUNK_BYTES), os.urandom(CHUNK_BYTES), b"end"]
            await live.ask(PutSnapshot(token=term.token, rev=230, index=0, chunks=3, data=chunks[0]))
            assert (await live.ask(GetSnapshot())).rev == 0, "half of one is none"
            with pytest.raises(Conflict):
                await live.ask(PutSnapshot(token=term.token, rev=230, index=2, chunks=3, data=chunks[2]))
            for index in (1, 2):
                await live.ask(PutSnapshot(token=term.token, rev=230, index=index, chunks=3, data=chunks[index]))
            info = await live.ask(GetSnapshot())
            assert info == SnapshotInfo(rev=230, chunks=3, size_bytes=2 * CHUNK_BYTES + 3)
            assert [(await live.ask(GetSnapshotChunk(rev=230, index=index))).data for index in range(3)] == chunks

            async def first_rev() -> bool:
                return (await live.ask(GetEntries(after=0, limit=1, anew=True))).first_rev == 230 - KEPT_REVS + 1

            await eventually(first_rev, "what lies behind the snapshot is gone")
            found = await live.ask(GetEntries(after=230 - KEPT_REVS, anew=True))
            assert [each.rev for each in found.entries] == list(range(230 - KEPT_REVS + 1, 241))
            with pytest.raises(Conflict):
                await put_snapshot(live, term, 230, [b"another one"])
            with pytest.raises(Invalid):
                await put_snapshot(live, term, 241, [b"of the future"])
            await put_snapshot(live, term, 240, [b"newer"])

            async def old_one_is_gone() -> bool:
                with contextlib.suppress(NotFound):
                    await live.ask(GetSnapshotChunk(rev=230, index=0))
                    return False
                return True

            await eventually(old_one_is_gone, "the former snapshot is deleted")

    asyncio.run(main())


def test_a_trim_that_was_cut_short_is_finished_by_the_next_leader(home: House) -> None:
    async def main() -> None:
        async with home.two() as (one, two):
            term = await one.lead()
            entries = [entry(rev) for rev in range(1, 61)]
            await append(one, term, *entries)
            log_service = one.service._log
            assert log_service is not None
            log_service._begin_trim = lambda _token: None  # type: ignore[method-assign]
            await put_snapshot(one, term, 60, [b"all of it"])
            assert (await one.ask(GetEntries(after=0, limit=1, anew=True))).first_rev == 1
            await one.ask(Closing(resource="kernel", token=term.token))
            await one.ask(Withdraw(resource="kernel", token=term.token))
            await two.lead()

            async def trimmed() -> bool:
                return (await two.ask(GetEntries(after=0, limit=1, anew=True))).first_rev == 60 - KEPT_REVS + 1

            await eventually(trimmed, "the next leader has trimmed it")

    asyncio.run(main())


def test_a_log_that_fills_half_of_the_quota_takes_no_entry_until_it_is_trimmed_and_leadership_goes_on() -> None:
    async def main(home: House, etcd: Cluster) -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
            digest, rev = b"", 0
            with pytest.raises(StoreFull, match="MiB"):
                while rev < 100:
                    one = entry(rev + 1, ENTRY_BYTES)
                    await append(live, term, one, after=digest)
                    digest, rev = one.digest, one.rev
            async with opened(etcd) as client:
                assert (await status.status(client, client.endpoint())).db_bytes < 24 << 20, "etcd itself is not full"
            await put_snapshot(live, term, rev, [b"all of it"])

            async def taken() -> bool:
                with contextlib.suppress(StoreFull):
                    await append(live, term, entry(rev + 1), after=digest)
                    return True
                return False

            await eventually(taken, "entries are taken again", 15)
            assert node.token() == term.token
            found = await live.ask(GetEntries(after=0))
            assert sum(len(each.sealed) for each in found.entries) < 8 << 20

    with Cluster(1, quota_bytes=32 << 20, heartbeat_ms=50, election_ms=400) as etcd, house(etcd) as home:
        asyncio.run(main(home, etcd))


# --- an etcd that is not the one that was known


def test_a_restored_etcd_is_believed_by_nobody_and_the_lead_is_given_up_at_once(tmp_path: Path) -> None:
    async def main(home: House, etcd: Cluster) -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
            await append(live, term, genesis := entry(1))
            async with opened(etcd) as client:
                await status.save(client, etcd.endpoints[0], tmp_path / "copy", 10)
            await append(live, term, later := entry(2), after=genesis.digest)
            (member,) = etcd.members
            member.kill()
            shutil.copytree(member.paths.etcd_data, tmp_path / "newest")
            restore(member, tmp_path / "copy", member.settings.token)
            member.start()
            etcd.wait_up()
            await eventually(lambda: live.leaser.driver.state.restored, "it was noticed")
            assert not node.token()
            remembered = live.leaser.driver.facts.entries
            await eventually(lambda: not remembered.after(0, 9, 1 << 20), "what the other one's watch brought is forgotten")
            assert any("nodes remove" in str(facts.get("reason")) for event, facts in node.said if event == "raised an alarm")
            for request in (Campaign(resource="kernel"), GetHead(), GetEntries(after=0)):
                with pytest.raises(StoreRestored) as told:
                    await live.ask(request)
                assert told.value.hint == RESTORED_HINT
            with pytest.raises(NotLeader):
                await append(live, term, entry(3), after=later.digest)
        async with living(node) as live:  # the memory is on the disk
            await eventually(lambda: live.leaser.driver.state.restored, "the next life knows it, too")
            assert not node.token()
        # The way of docs/how-to.md: the newest data again, and the distrust forgotten by hand.
        member.kill()
        shutil.rmtree(member.paths.etcd_data)
        shutil.copytree(tmp_path / "newest", member.paths.etcd_data)
        member.start()
        etcd.wait_up()
        (node.paths.cluster / "seen.json").unlink()
        async with living(node) as live:
            await live.lead()
            assert (await live.ask(GetHead())).rev == 2

    with Cluster(1, heartbeat_ms=50, election_ms=400) as etcd, house(etcd) as home:
        asyncio.run(main(home, etcd))
