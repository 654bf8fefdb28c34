"""The lock, the password and the recovery words of a node that runs, and kill -9 while they change."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from piccolod import errors
from piccolod.protocol.consensus import GetLeadership
from piccolod.protocol.persistence import (
    ChangePassword,
    GetCryptoStatus,
    GetLog,
    GetRevision,
    List,
    Lock,
    NewRecovery,
    Read,
    ResetPassword,
    VerifyPassword,
)
from services.persistence import keyset as keysets
from services.persistence.keyset import Keyset

from .house import MADE, PASSWORD, House, commit, in_loop, member, replaced, set_up, unlock, until, write


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
