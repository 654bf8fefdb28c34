"""Commands on documents: who may read and write what, and the keys of volumes."""

from __future__ import annotations

from typing import Any

import msgspec

from piccolod import clock
from piccolod.errors import Conflict, Forbidden, Invalid, NotFound, StoreCorrupt
from piccolod.kernel import may_read, may_write
from piccolod.module import Caller, Module
from piccolod.protocol.persistence import (
    Commit,
    Committed,
    Document,
    Documents,
    ForgetVolumeKey,
    GetVolumeKey,
    List,
    Read,
    VolumeKey,
)
from services.persistence import volume_keys
from services.persistence.ledger import Write
from services.persistence.log import REPAIR_HINT
from services.persistence.state import ABSENT, delete, put
from services.persistence.vault import Vault


class DocumentCommands:
    """Each waits until the store was looked at, so that a command right after a restart finds it unlocked."""

    def __init__(self, vault: Vault, log: Any) -> None:
        self._vault = vault
        self._log = log

    def serve(self, module: Module) -> None:
        module.serve(Read, self._read)
        module.serve(List, self._list)
        module.serve(Commit, self._commit)
        module.serve(GetVolumeKey, self._volume_key)
        module.serve(ForgetVolumeKey, self._forget_volume_key)

    async def _read(self, request: Read, caller: Caller) -> Document:
        await self._vault.opened.wait()
        store, _ = self._vault.unlocked()
        _check_read(caller, request.collection)
        found = store.state.get(request.collection, request.id)
        if found is None:
            raise NotFound(f"there is no {request.collection}/{request.id}")
        return Document(id=request.id, generation=found.generation, body=msgspec.msgpack.decode(found.body))

    async def _list(self, request: List, caller: Caller) -> Documents:
        await self._vault.opened.wait()
        store, _ = self._vault.unlocked()
        _check_read(caller, request.collection)
        documents = tuple(
            Document(id=id, generation=found.generation, body=msgspec.msgpack.decode(found.body))
            for id, found in sorted(store.state.list(request.collection).items())
        )
        return Documents(rev=store.state.rev, documents=documents)

    async def _commit(self, request: Commit, caller: Caller) -> Committed:
        await self._vault.opened.wait()
        self._vault.unlocked()
        for write in request.writes:
            if not may_write(caller.module, write.collection):
                raise Forbidden(f"{caller.module} may not write {write.collection}")
        for expect in request.expect:
            _check_read(caller, expect.collection)
        expected = {(expect.collection, expect.id): expect.generation for expect in request.expect}
        if len(expected) != len(request.expect):
            raise Invalid("a document is expected twice")
        ops = [
            delete(write.collection, write.id) if write.body is None else put(write.collection, write.id, write.body)
            for write in request.writes
        ]
        return await self._write(Write(ops, expected, request.author, caller.idem, clock.wall_ms()))

    async def _write(self, write: Write) -> Committed:
        if self._vault.damage:
            raise StoreCorrupt(self._vault.damage, hint=REPAIR_HINT)
        _, commits = self._vault.unlocked()
        outcome = await commits.commit(write)
        return Committed(rev=outcome.rev, repeated=outcome.repeated)

    async def _volume_key(self, request: GetVolumeKey, caller: Caller) -> VolumeKey:
        await self._vault.opened.wait()
        id = volume_keys.id_of(request.app, request.volume)
        store, _ = self._vault.unlocked()
        found = store.state.get(volume_keys.COLLECTION, id)
        if found is None:
            if not request.create:
                raise NotFound(f"volume {id} has no key")
            made = put(volume_keys.COLLECTION, id, volume_keys.wrapped(store.key, store.meta.cluster, id))
            absent = {(volume_keys.COLLECTION, id): ABSENT}
            try:
                await self._write(Write([made], absent, caller.module, "", clock.wall_ms()))
            except Conflict:
                self._log.info("another call made the key of the volume", volume=id)
            store, _ = self._vault.unlocked()
            found = store.state.get(volume_keys.COLLECTION, id)
            if found is None:
                raise NotFound(f"the key of volume {id} was dropped meanwhile")
        document: Any = msgspec.msgpack.decode(found.body)
        return VolumeKey(key=volume_keys.unwrapped(store.key, store.meta.cluster, id, document))

    async def _forget_volume_key(self, request: ForgetVolumeKey, caller: Caller) -> Committed:
        await self._vault.opened.wait()
        self._vault.unlocked()
        gone = delete(volume_keys.COLLECTION, volume_keys.id_of(request.app, request.volume))
        return await self._write(Write([gone], {}, caller.module, caller.idem, clock.wall_ms()))


def _check_read(caller: Caller, collection: str) -> None:
    if not may_read(caller.module, collection):
        raise Forbidden(f"{caller.module} may not read {collection}")
