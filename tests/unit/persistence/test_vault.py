"""What a start finds on the disk, and what it makes of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog

from piccolod.errors import Exists, Locked, StoreCorrupt, StoreUnavailable, WrongPassword
from services.persistence.committer import Committer
from services.persistence.ledger import Write
from services.persistence.local_commit import LocalCommit
from services.persistence.state import put
from services.persistence.store import Store
from services.persistence.vault import Condition, Vault

from .conftest import CHEAP
from .test_committer import SwitchedGate

PASSWORD = "correct horse battery"


def start(folder: Path, work: Callable[[Vault], Awaitable[None]], deposited: bytes | None = None) -> None:
    """One life of persistence without its bus."""

    async def run() -> None:
        gate, log = SwitchedGate(), structlog.get_logger()
        vault = Vault(
            folder / "control.db",
            folder / "keyset.json",
            lambda store: Committer(
                store, LocalCommit(store, gate, lambda _: None, lambda _: None, log), gate, asyncio.ensure_future, log
            ),
            lambda: None,
            SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None),
            CHEAP,
        )
        await vault.open(deposited)
        try:
            await work(vault)
        finally:
            await vault.close()

    asyncio.run(run())


async def put_one(vault: Vault, id: str) -> int:
    _, commits = vault.unlocked()
    return (await commits.commit(Write([put("settings", id, {"v": 1})], {}, "admin", "", 1))).rev


async def set_up(vault: Vault) -> None:
    await vault.set_up(PASSWORD)
    assert await put_one(vault, "a") == 1


async def is_locked(vault: Vault) -> None:
    assert vault.condition is Condition.LOCKED


def test_a_setup_that_died_before_its_keyset_is_simply_repeated(tmp_path: Path) -> None:
    Store.create(tmp_path / "control.db", "half-made")

    async def work(vault: Vault) -> None:
        assert vault.condition is Condition.UNINITIALIZED
        await set_up(vault)
        assert vault.cluster == "half-made", "the empty log is taken over"

    start(tmp_path, work)


def test_a_setup_that_died_in_the_middle_of_its_log_is_simply_repeated(tmp_path: Path) -> None:
    (tmp_path / "control.db.first").write_bytes(b"SQLite format 3\x00 and no more")
    (tmp_path / "keyset.json.new").write_bytes(b"{")
    start(tmp_path, set_up)


def test_after_a_start_the_store_is_locked_until_somebody_knows_the_password(tmp_path: Path) -> None:
    start(tmp_path, set_up)

    async def work(vault: Vault) -> None:
        with pytest.raises(Locked):
            vault.unlocked()
        with pytest.raises(Exists):
            await vault.set_up("another password")
        with pytest.raises(WrongPassword):
            await vault.passwords.by_password("another password", "t")
        await vault.unlock(await vault.passwords.by_password(PASSWORD, "t"))
        assert await put_one(vault, "b") == 2

    start(tmp_path, work)


@pytest.mark.parametrize("garbage", [b"", b"short", os.urandom(33)])
def test_a_deposit_that_is_no_key_is_none(tmp_path: Path, garbage: bytes) -> None:
    start(tmp_path, set_up)
    start(tmp_path, is_locked, garbage)


def test_a_deposit_of_another_store_opens_nothing_and_the_password_does(tmp_path: Path) -> None:
    start(tmp_path, set_up)

    async def work(vault: Vault) -> None:
        await is_locked(vault)
        await vault.unlock(await vault.passwords.by_password(PASSWORD, "t"))
        assert await put_one(vault, "b") == 2

    start(tmp_path, work, os.urandom(32))


def test_a_log_in_use_without_its_keyset_is_no_new_node(tmp_path: Path) -> None:
    start(tmp_path, set_up)
    (tmp_path / "keyset.json").unlink()

    async def work(vault: Vault) -> None:
        assert vault.condition is Condition.CORRUPT
        assert "keyset.json is missing" in vault.reason
        with pytest.raises(StoreCorrupt):
            await vault.set_up("another password")

    start(tmp_path, work)
    (tmp_path / "control.db").unlink()
    start(tmp_path, work)


def test_a_keyset_without_its_log_is_no_new_node_either(tmp_path: Path) -> None:
    start(tmp_path, set_up)
    (tmp_path / "control.db").unlink()

    async def work(vault: Vault) -> None:
        assert vault.condition is Condition.CORRUPT
        assert "control.db is missing" in vault.reason
        report = await vault.repair()
        assert (report.ok, report.good_rev, report.lost_revs) == (True, 0, 1)
        assert vault.condition is Condition.LOCKED

    start(tmp_path, work)


def test_a_disk_that_does_not_answer_is_no_damage_and_is_tried_again(tmp_path: Path) -> None:
    start(tmp_path, set_up)
    keyset = tmp_path / "keyset.json"
    whole = keyset.read_bytes()
    keyset.unlink()
    keyset.mkdir()  # reading it is an error of the operating system, for root too

    async def work(vault: Vault) -> None:
        assert vault.condition is Condition.UNAVAILABLE
        with pytest.raises(StoreUnavailable):
            vault.unlocked()
        with pytest.raises(StoreUnavailable):
            await vault.set_up("another password")
        keyset.rmdir()
        keyset.write_bytes(whole)
        await vault.open(None)
        assert vault.condition is Condition.LOCKED

    start(tmp_path, work)


def test_a_failed_unlock_keeps_the_key_for_the_repair(tmp_path: Path) -> None:
    start(tmp_path, set_up)

    async def work(vault: Vault) -> None:
        db = tmp_path / "control.db"
        content = bytearray(db.read_bytes())
        content[1] ^= 1
        db.write_bytes(bytes(content))
        key = await vault.passwords.by_password(PASSWORD, "t")
        with pytest.raises(StoreCorrupt):
            await vault.unlock(key)
        assert vault.condition is Condition.CORRUPT
        report = await vault.repair()
        assert (report.ok, report.lost_revs) == (True, 0)
        assert vault.condition is Condition.UNLOCKED
        assert await put_one(vault, "b") == 2
        report = await vault.repair()
        assert (report.ok, report.set_aside) == (True, ""), "a repair of what is whole does nothing"

    start(tmp_path, work)
