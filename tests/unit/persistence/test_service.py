"""persistence as it runs: a real process on the real bus, with a real consensus, and kill -9 of it."""

from __future__ import annotations

import asyncio

import pytest

from piccolod import errors
from piccolod.protocol.consensus import GetLeadership
from piccolod.protocol.events import ControlStoreCommit, LockStateChanged
from piccolod.protocol.persistence import (
    Check,
    Commit,
    Expect,
    ForgetVolumeKey,
    GetCryptoStatus,
    GetLog,
    GetRevision,
    GetVolumeKey,
    List,
    Read,
    Setup,
    Write,
)

from .house import MADE, House, commit, in_loop, member, replaced, set_up, until, write


@in_loop
async def test_a_fresh_node_says_that_it_has_no_password_and_the_setup_unlocks_and_leads(house: House) -> None:
    async with member(house) as api:
        events: list[LockStateChanged] = []
        api.on(LockStateChanged, events.append)
        status = await api.call(GetCryptoStatus())
        assert (status.initialized, status.locked, status.keyset_version) == (False, True, 0)
        with pytest.raises(errors.Locked) as caught:
            await api.call(Read(collection="settings", id="a"))
        assert "piccoloctl setup" in caught.value.hint
        for refused in ("", "short", "       "):
            with pytest.raises(errors.Invalid):
                await api.call(Setup(password=refused))

        status = await set_up(api)
        assert (status.initialized, status.locked, status.has_recovery) == (True, False, False)
        with pytest.raises(errors.Exists):
            await set_up(api)
        (kernel,) = (await api.call(GetLeadership(resource="kernel"))).leaderships
        assert kernel.role == "leader"
        assert await commit(api, write("a", {"v": 1}, generation=0)) == 2
        await until(lambda: any(not event.locked for event in events), "the unlock is announced")


@in_loop
async def test_documents_are_written_read_listed_and_announced(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        commits: list[ControlStoreCommit] = []
        api.on(ControlStoreCommit, commits.append)
        assert await commit(api, write("b", {"v": 1})) == 2
        assert await commit(api, write("a", {"v": 2})) == 3
        assert await commit(api, write("a", {"v": 2})) == 3, "an unchanged document is no rev"
        assert await commit(api, Commit(writes=(), author="admin")) == 3
        document = await api.call(Read(collection="settings", id="a"))
        assert (document.generation, document.body) == (3, {"v": 2})
        listed = await api.call(List(collection="settings"))
        assert (listed.rev, [d.id for d in listed.documents]) == (3, ["a", "b"])
        with pytest.raises(errors.Conflict):
            await commit(api, write("a", {"v": 3}, generation=2))
        assert await commit(api, write("a", None, generation=3)) == 4
        with pytest.raises(errors.NotFound):
            await api.call(Read(collection="settings", id="a"))
        await until(lambda: commits and commits[-1].rev == 4, "rev 4 is announced")
        assert ("settings",) in [event.collections for event in commits]
        revision = await api.call(GetRevision())
        assert (revision.rev, revision.verified, revision.locked) == (4, 4, False)
        log = await api.call(GetLog())
        assert [(e.rev, e.author, e.changed) for e in log.entries] == [
            (1, "persistence", ("put pki/ca",)),
            (2, "admin", ("put settings/b",)),
            (3, "admin", ("put settings/a",)),
            (4, "admin", ("delete settings/a",)),
        ]
        assert log.entries[3].digest == revision.digest
        assert log.entries[3].parent == log.entries[2].digest
        assert [e.rev for e in (await api.call(GetLog(after=1, limit=1))).entries] == [2]
        await until(lambda: [m["rev"] for m in house.told if m["t"] == "VERIFIED"][-1:] == [4], "the supervisor is told rev 4")


@in_loop
async def test_who_may_not_read_or_write_a_collection_is_refused_and_nothing_is_written(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        for request in (
            Commit(writes=(Write(collection="apps", id="a", body={}),), author="admin"),
            Commit(
                writes=(Write(collection="settings", id="a", body={}), Write(collection="volume_keys", id="a.b", body={})),
                author="admin",
            ),
            Commit(writes=(), expect=(Expect(collection="secrets", id="a", generation=0),), author="admin"),
            Read(collection="secrets", id="a"),
            List(collection="volume_keys"),
            Read(collection="pki", id="ca"),
            List(collection="pki"),
            Commit(writes=(Write(collection="pki", id="ca", body=None),), author="admin"),
            GetVolumeKey(app="a", volume="v", create=True),
        ):
            with pytest.raises(errors.Forbidden):
                await api.call(request)  # type: ignore[arg-type]
        assert (await api.call(GetRevision())).rev == MADE


@in_loop
async def test_a_kill_does_not_lock_the_node_and_loses_nothing(house: House) -> None:
    async with member(house) as api:
        events: list[LockStateChanged] = []
        await set_up(api)
        api.on(LockStateChanged, events.append)
        last = 0
        for life in range(5):
            last = await commit(api, write(f"k{life}", {"life": life}), idem=f"idem-{life}")
            await replaced(house, api)
            status = await api.call(GetCryptoStatus())
            assert not status.locked, "the key was with the supervisor"
            assert await commit(api, write(f"k{life}", {"life": life}), idem=f"idem-{life}") == last
            again = await api.call(write(f"k{life}", {"life": life}), idem=f"idem-{life}")
            assert (again.rev, again.repeated) == (last, True)
        assert [event for event in events if event.locked] == [], "nobody was told of a lock that never was"
        assert (await api.call(GetRevision())).rev == last == MADE + 5


@in_loop
async def test_kills_in_the_middle_of_many_writers_lose_no_acknowledged_rev(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        acknowledged: dict[str, int] = {}
        stop = asyncio.Event()

        async def writer(name: int) -> None:
            number = 0
            while not stop.is_set():
                id = f"w{name}-{number}"
                try:
                    acknowledged[id] = await commit(api, write(id, {"n": number}), idem=id)
                    number += 1
                except (errors.PeerRestarted, errors.DeadlineExceeded, errors.StoreUnavailable, errors.NotLeader):
                    await asyncio.sleep(0.005)

        writers = [asyncio.create_task(writer(name)) for name in range(8)]
        for _ in range(25):
            had = len(acknowledged)
            await until(lambda had=had: len(acknowledged) > had + 40, "writes go on")
            house.replace_persistence()
        stop.set()
        await asyncio.gather(*writers)
        listed = {d.id: d.generation for d in (await api.call(List(collection="settings"))).documents}
        for id, rev in acknowledged.items():
            assert listed[id] == rev, f"{id} was acknowledged as rev {rev}"
        assert len(set(acknowledged.values())) == len(acknowledged), "no two writes share a rev"
        assert (await api.call(Check())).ok


@in_loop
async def test_a_volume_has_one_key_that_only_volumes_gets_and_that_can_be_forgotten(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
    async with member(house, "volumes") as volumes:
        with pytest.raises(errors.NotFound):
            await volumes.call(GetVolumeKey(app="hello", volume="data"))
        keys = await asyncio.gather(*(volumes.call(GetVolumeKey(app="hello", volume="data", create=True)) for _ in range(8)))
        assert len({key.key for key in keys}) == 1
        assert len(keys[0].key) == 32
        other = await volumes.call(GetVolumeKey(app="hello", volume="other", create=True))
        assert other.key != keys[0].key
        await replaced(house, volumes)
        assert (await volumes.call(GetVolumeKey(app="hello", volume="data"))).key == keys[0].key
        content = b"".join(p.read_bytes() for p in house.paths.state.rglob("*") if p.is_file())
        assert keys[0].key not in content
        await volumes.call(ForgetVolumeKey(app="hello", volume="data"))
        with pytest.raises(errors.NotFound):
            await volumes.call(GetVolumeKey(app="hello", volume="data"))
        assert (await volumes.call(GetVolumeKey(app="hello", volume="data", create=True))).key != keys[0].key
