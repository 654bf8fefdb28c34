"""Damage of the files of a node that runs: found, named, and repaired, and nothing is deleted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from piccolod import errors
from piccolod.module import Module
from piccolod.protocol.events import HealthChanged
from piccolod.protocol.persistence import Check, GetCryptoStatus, GetRevision, List, Lock, Read, Repair

from .house import MADE, House, commit, in_loop, member, replaced, set_up, unlock, until, write


def spoil_end(path: Path, count: int) -> None:
    """In place, as a bad block is: whoever has the file open or mapped sees it."""
    with open(path, "r+b") as file:
        at = len(file.read().rstrip(b"\x00")) - count
        file.seek(at)
        spoiled = bytes(byte ^ 0xFF for byte in file.read(count))
        file.seek(at)
        file.write(spoiled)


async def filled(api: Module) -> None:
    """Set up, with 20 writes."""
    await set_up(api)
    for number in range(20):
        await commit(api, write(f"k{number}", {"v": number}))


@in_loop
async def test_a_damaged_log_is_named_and_repaired_and_nothing_is_deleted(house: House) -> None:
    async with member(house) as api:
        health: list[HealthChanged] = []
        api.on(HealthChanged, health.append, "persistence")
        await filled(api)
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
        await filled(api)
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
        await filled(api)
        await until(lambda: health and health[-1].level == "OK", "well at first")
        spoil_end(Path(f"{house.paths.control_db}-wal"), 150)
        named = str(house.paths.control_db)
        await until(lambda: health[-1].level == "ERROR" and named in health[-1].reason, "health names the file")


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
