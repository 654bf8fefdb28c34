"""persistence as it runs: a real process on the real bus, with a real consensus, and kill -9 of it."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from piccolod import errors
from piccolod.module import Module
from piccolod.protocol.consensus import GetLeadership
from piccolod.protocol.events import ControlStoreCommit, HealthChanged, LockStateChanged
from piccolod.protocol.persistence import (
    ChangePassword,
    Check,
    Commit,
    Committed,
    CryptoStatus,
    Expect,
    ForgetVolumeKey,
    GetCryptoStatus,
    GetLog,
    GetRevision,
    GetVolumeKey,
    List,
    Lock,
    NewRecovery,
    Read,
    Repair,
    ResetPassword,
    Setup,
    Unlock,
    VerifyPassword,
    Write,
)
from services.persistence import keyset as keysets
from services.persistence.keyset import Keyset

from .house import PERSISTENCE, House, member, until

PASSWORD = "correct horse battery"

MADE = 1  # the rev of the cluster's certificate authority, which the setup makes


@contextmanager
def begun(entry: str = PERSISTENCE) -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="pers") as folder:
        house = House(Path(folder), entry)
        try:
            house.begin()
            yield house
        finally:
            house.close()


@pytest.fixture
def house() -> Iterator[House]:
    with begun() as house:
        yield house


@pytest.fixture
def hasty() -> Iterator[House]:
    with begun("tests.unit.persistence.hasty:main") as house:
        yield house


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**houses: House) -> None:
        asyncio.run(test(**houses))  # type: ignore[arg-type]

    return run


def write(id: str, body: dict[str, Any] | None, generation: int | None = None) -> Commit:
    expect = () if generation is None else (Expect(collection="settings", id=id, generation=generation),)
    return Commit(writes=(Write(collection="settings", id=id, body=body),), expect=expect, author="admin")


def spoil_end(path: Path, count: int) -> None:
    """In place, as a bad block is: whoever has the file open or mapped sees it."""
    with open(path, "r+b") as file:
        at = len(file.read().rstrip(b"\x00")) - count
        file.seek(at)
        spoiled = bytes(byte ^ 0xFF for byte in file.read(count))
        file.seek(at)
        file.write(spoiled)


async def set_up(api: Module) -> CryptoStatus:
    return await api.call(Setup(password=PASSWORD), timeout_s=20)


async def unlock(api: Module, password: str = PASSWORD, source: str = "test") -> CryptoStatus:
    return await api.call(Unlock(password=password, source=source), timeout_s=20)


async def replaced(house: House, api: Module, *, kill: bool = True) -> None:
    """The next persistence, known to `api`."""
    await asyncio.to_thread(house.replace_persistence, kill=kill)
    await until(lambda: api.peers.instance("persistence") == house.peers["persistence"][1], "the new one is known")


async def commit(api: Module, request: Commit, idem: str = "") -> int:
    reply: Committed = await api.call(request, idem=idem)
    return reply.rev


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
async def test_a_lock_refuses_everything_forgets_the_key_and_starts_clean(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        await commit(api, write("a", {"v": 1}))
        assert list(house.deposits) == ["sdek"]
        status = await api.call(Lock())
        assert (status.locked, status.initialized) == (True, True)
        assert house.deposits == {}
        for request in (Read(collection="settings", id="a"), List(collection="settings"), write("a", {"v": 2})):
            with pytest.raises(errors.Locked):
                await api.call(request)  # type: ignore[arg-type]
        with pytest.raises(errors.Locked):
            await api.call(VerifyPassword(password=PASSWORD, source="test"))
        (kernel,) = (await api.call(GetLeadership(resource="kernel"))).leaderships
        assert kernel.role != "leader"

        await replaced(house, api, kill=False)
        status = await api.call(GetCryptoStatus())
        assert status.locked
        assert (await api.call(GetRevision())).rev == MADE + 1
        assert [e.changed for e in (await api.call(GetLog())).entries] == [(), ()], "while locked only headers are shown"
        assert not (await unlock(api)).locked
        assert await commit(api, write("a", {"v": 2})) == MADE + 2


@in_loop
async def test_an_unlock_right_after_a_lock_is_answered_and_keeps_the_process(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        await api.call(Lock())
        with pytest.raises(errors.WrongPassword):
            await unlock(api, "a wrong password")
        assert not (await unlock(api)).locked
        assert await commit(api, write("a", {"v": 1})) == MADE + 1
        assert list(house.deposits) == ["sdek"]
        await asyncio.sleep(1.0)  # longer than a lock gives a process that holds no key any more
        assert house.children["persistence"].poll() is None
        assert await commit(api, write("a", {"v": 2})) == MADE + 2


@in_loop
async def test_wrong_passwords_are_refused_and_then_right_ones_too_for_a_while(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        await api.call(VerifyPassword(password=PASSWORD, source="a"), timeout_s=20)
        for _ in range(5):
            with pytest.raises(errors.WrongPassword):
                await api.call(VerifyPassword(password="a wrong password", source="a"), timeout_s=20)
        with pytest.raises(errors.TooMany) as caught:
            await api.call(VerifyPassword(password=PASSWORD, source="a"), timeout_s=20)
        assert caught.value.retry_after_s is not None
        assert 0 < caught.value.retry_after_s <= 1.0
        await api.call(VerifyPassword(password=PASSWORD, source="another"), timeout_s=20)
        assert await commit(api, write("a", {"v": 1})) == MADE + 1, "guesses stop nobody's work"


@in_loop
async def test_passwords_and_words_are_changed_and_the_data_is_not(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        await commit(api, write("a", {"v": 1}))
        before = (await api.call(GetLog())).entries
        with pytest.raises(errors.WrongPassword):
            await api.call(ChangePassword(old="not the password", new="another password", source="t"), timeout_s=20)
        with pytest.raises(errors.Invalid):
            await api.call(ChangePassword(old=PASSWORD, new="short", source="t"), timeout_s=20)
        status = await api.call(ChangePassword(old=PASSWORD, new="another password", source="t"), timeout_s=20)
        assert status.keyset_version == 2
        words = (await api.call(NewRecovery(password="another password", source="t"), timeout_s=20)).words
        assert (await api.call(GetCryptoStatus())).has_recovery
        await api.call(Lock())
        await replaced(house, api, kill=False)
        with pytest.raises(errors.WrongPassword):
            await unlock(api)
        split = words.split()
        with pytest.raises(errors.Invalid):
            await api.call(ResetPassword(words=" ".join(split[:23]), new="a third password", source="t"), timeout_s=20)
        status = await api.call(ResetPassword(words=words.upper(), new="a third password", source="t"), timeout_s=20)
        assert not status.locked
        assert (await api.call(Read(collection="settings", id="a"))).body == {"v": 1}
        assert (await api.call(GetLog())).entries == before, "a new password encrypts nothing again"
        secrets = [PASSWORD, "another password", "a third password", " ".join(split[:3])]
        content = b"".join(p.read_bytes() for p in house.paths.state.rglob("*") if p.is_file())
        assert not [secret for secret in secrets if secret.encode() in content]


@in_loop
async def test_a_damaged_log_is_named_and_repaired_and_nothing_is_deleted(house: House) -> None:
    async with member(house) as api:
        health: list[HealthChanged] = []
        api.on(HealthChanged, health.append, "persistence")
        await set_up(api)
        for number in range(20):
            await commit(api, write(f"k{number}", {"v": number}))
        await api.call(Lock())
        await asyncio.to_thread(house.children["persistence"].wait, 10)
        db = house.paths.control_db
        whole = db.read_bytes()
        db.write_bytes(b"\x00" * 16 + whole[16:])
        await replaced(house, api, kill=False)
        status = await api.call(GetCryptoStatus())
        assert str(db) in status.reason
        await until(lambda: health and health[-1].level == "ERROR" and str(db) in health[-1].reason, "health names the file")
        with pytest.raises(errors.StoreCorrupt):
            await api.call(Read(collection="settings", id="k1"))
        with pytest.raises(errors.StoreCorrupt):
            await unlock(api)
        report = await api.call(Check())
        assert (report.ok, report.file) == (False, str(db))
        report = await api.call(Repair())
        assert (report.ok, report.good_rev, report.lost_revs) == (True, 20 + MADE, 0)
        (aside,) = db.parent.glob("control.db.corrupt-*Z")
        assert (str(aside), aside.read_bytes()) == (report.set_aside, b"\x00" * 16 + whole[16:])
        assert not (await unlock(api)).locked
        assert (await api.call(Read(collection="settings", id="k19"))).body == {"v": 19}
        assert await commit(api, write("k20", {"v": 20})) == MADE + 21
        await until(lambda: health[-1].level == "OK", "health is well again")


@in_loop
async def test_damage_under_a_running_store_stops_writes_not_reads_and_repair_loses_nothing(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        for number in range(20):
            await commit(api, write(f"k{number}", {"v": number}))
        # The end of the newest copy of the page of entries, where its first rows are.
        spoil_end(Path(f"{house.paths.control_db}-wal"), 150)
        report = await api.call(Check())
        assert not report.ok, "the write-ahead log of a running store is looked at too"
        with pytest.raises(errors.StoreCorrupt):
            await commit(api, write("new", {"v": 1}))
        assert (await api.call(Read(collection="settings", id="k19"))).body == {"v": 19}
        report = await api.call(Repair())
        assert (report.ok, report.lost_revs, report.head_rev) == (True, 0, MADE + 20)
        listed = await api.call(List(collection="settings"))
        assert {d.id: d.body["v"] for d in listed.documents} == {f"k{n}": n for n in range(20)}
        assert await commit(api, write("new", {"v": 1})) == MADE + 21
        await replaced(house, api)
        assert (await api.call(GetRevision())).rev == MADE + 21


@in_loop
async def test_damage_that_nobody_asks_about_is_found_in_the_background(hasty: House) -> None:
    async with member(house := hasty) as api:
        health: list[HealthChanged] = []
        api.on(HealthChanged, health.append, "persistence")
        await set_up(api)
        for number in range(20):
            await commit(api, write(f"k{number}", {"v": number}))
        await until(lambda: health and health[-1].level == "OK", "well at first")
        spoil_end(Path(f"{house.paths.control_db}-wal"), 150)
        named = str(house.paths.control_db)
        await until(lambda: health[-1].level == "ERROR" and named in health[-1].reason, "health names the file")


@in_loop
async def test_the_old_or_the_new_password_works_after_each_of_20_kills_of_the_module_that_changes_it(hasty: House) -> None:
    async with member(house := hasty) as api:
        await set_up(api)
        await commit(api, write("a", {"v": 1}))
        words = (await api.call(NewRecovery(password=PASSWORD, source="t"), timeout_s=20)).words
        loop, current = asyncio.get_running_loop(), PASSWORD
        began = loop.time()
        await api.call(ChangePassword(old=current, new=current, source="t"), timeout_s=20)
        took_s = loop.time() - began
        changed = 0
        for number in range(20):
            new = f"another password {number}"
            order = asyncio.create_task(api.call(ChangePassword(old=current, new=new, source="t"), timeout_s=20))
            # The length of the life that is cut. Every fifth is long enough for the answer.
            await asyncio.wait([order], timeout=20 if number % 5 == 4 else took_s * random.uniform(0.0, 1.5))
            house.kill("persistence")
            house.revive_persistence()
            acknowledged = not isinstance((await asyncio.gather(order, return_exceptions=True))[0], BaseException)
            keyset = keysets.load(house.paths.keyset)
            assert keyset is not None, f"kill {number}: the keyset is damaged"
            working = [password for password in (current, new) if opens(keyset, password)]
            assert len(working) == 1, f"kill {number}: {working} work"
            assert not acknowledged or working == [new], f"kill {number}: a change that was acknowledged is gone"
            changed += working == [new]
            current = working[0]
            await until(lambda: api.peers.instance("persistence") == house.peers["persistence"][1], "the new one is known")
            assert not (await api.call(GetCryptoStatus(), timeout_s=20)).locked
        assert 0 < changed < 20, "kills before and after the change"
        await api.call(VerifyPassword(password=current, source="t"), timeout_s=20)
        assert not (await api.call(ResetPassword(words=words, new=PASSWORD, source="t"), timeout_s=20)).locked
        assert (await api.call(Read(collection="settings", id="a"))).body == {"v": 1}


def opens(keyset: Keyset, password: str) -> bool:
    try:
        keysets.open_by_password(keyset, password)
    except errors.WrongPassword:
        return False
    return True


@in_loop
async def test_a_damaged_keyset_is_named_while_it_can_still_be_replaced(house: House) -> None:
    async with member(house) as api:
        await set_up(api)
        keyset = house.paths.keyset
        whole = keyset.read_bytes()
        keyset.write_bytes(whole[:-10])
        report = await api.call(Check())
        assert (report.ok, report.file) == (False, str(keyset))
        assert (await api.call(Repair())).ok
        assert keyset.read_bytes() == whole
        assert [p.read_bytes() for p in keyset.parent.glob("keyset.json.corrupt-*")] == [whole[:-10]]


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


@in_loop
async def test_a_node_without_its_deposit_is_locked_and_leads_nothing(house: House) -> None:
    """As after the death of the supervisor: the term on the page is of a store that nobody can write any more."""
    async with member(house) as api:
        await set_up(api)
        for fd in house.deposits.values():
            os.close(fd)
        house.deposits.clear()
        await replaced(house, api)
        assert (await api.call(GetCryptoStatus())).locked
        give_up_at = asyncio.get_running_loop().time() + 10
        while (await api.call(GetLeadership(resource="kernel"))).leaderships[0].role == "leader":
            assert asyncio.get_running_loop().time() < give_up_at, "a locked node gives the kernel up"
            await asyncio.sleep(0.02)
        assert not (await unlock(api)).locked
        assert await commit(api, write("a", {"v": 1})) == MADE + 1
