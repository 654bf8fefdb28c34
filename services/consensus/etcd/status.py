"""How a member is, and its upkeep: status, alarms, compaction, defragmentation, a copy of all of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import grpc
from msgspec import Struct

from piccolod.errors import Failed, StoreUnavailable
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import judge
from services.consensus.etcd.header import Header
from services.consensus.etcd.stubs import ALARM, COMPACT, DEFRAGMENT, MOVE_LEADER, SNAPSHOT, STATUS, newer_fields, rpc

_NAMES: Final = {1: "NOSPACE", 2: "CORRUPT"}
# Fields of StatusResponse that came after these messages were generated (3.4).
_BYTES_IN_USE: Final = 9
_IS_LEARNER: Final = 10
_QUOTA_BYTES: Final = 12  # 3.6
_HASH_BYTES: Final = hashlib.sha256().digest_size
_PAGE_BYTES: Final = 512


class Status(Struct, frozen=True):
    """One member's own word. `leader_id` 0: it sees none. `used_bytes`: the rest of `db_bytes` a defragmentation frees.

    `quota_bytes` 0: it is too old to tell.
    """

    header: Header
    version: str
    db_bytes: int
    used_bytes: int
    leader_id: int
    learner: bool
    quota_bytes: int = 0

    @property
    def leads(self) -> bool:
        return self.leader_id == self.header.member_id


class Alarm(Struct, frozen=True):
    member_id: int
    name: str
    number: int


async def status(client: Client, endpoint: str) -> Status:
    """Also of a member that sees no leader."""
    answer = await client.ask(endpoint, STATUS, rpc.StatusRequest(), client.rpc_s)
    newer = newer_fields(answer)
    return Status(
        Header.of(answer), answer.version, answer.dbSize, newer.get(_BYTES_IN_USE, answer.dbSize), answer.leader,
        bool(newer.get(_IS_LEARNER, 0)), newer.get(_QUOTA_BYTES, 0),
    )  # fmt: skip


async def alarms(client: Client, within_s: float) -> tuple[Alarm, ...]:
    """Of all members."""
    answered = await client.read(ALARM, rpc.AlarmRequest(action=rpc.AlarmRequest.GET), within_s)
    return tuple(
        Alarm(each.memberID, _NAMES.get(each.alarm, f"ALARM_{each.alarm}"), each.alarm) for each in answered.message.alarms
    )


async def disarm(client: Client, alarm: Alarm, within_s: float) -> None:
    request = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=alarm.member_id, alarm=alarm.number)
    await client.read(ALARM, request, within_s)


async def compact(client: Client, revision: int, within_s: float) -> None:
    """Forgets what was before `revision`, on the disk too when this returns. Raises Compacted when it was done before."""
    await client.write(COMPACT, rpc.CompactionRequest(revision=revision, physical=True), within_s)


async def defragment(client: Client, endpoint: str, within_s: float) -> None:
    """Gives free pages back to the disk. The member answers nothing meanwhile."""
    await client.ask(endpoint, DEFRAGMENT, rpc.DefragmentRequest(), within_s)


async def move_leader(client: Client, leader: str, to_member_id: int) -> None:
    """Hands etcd's own leadership over. `leader`: the endpoint that has it."""
    await client.ask(leader, MOVE_LEADER, rpc.MoveLeaderRequest(targetID=to_member_id), client.rpc_s)


async def save(client: Client, endpoint: str, file: Path, within_s: float) -> int:
    """A member's whole store, as `etcdctl snapshot restore` takes it, checked and synced. Returns its bytes."""
    draft = file.with_name(f"{file.name}.part")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        tail, digest, size = b"", hashlib.sha256(), 0
        async for part in client.channel(endpoint).download(SNAPSHOT, rpc.SnapshotRequest(), within_s):
            os.write(fd, part.blob)
            size += len(part.blob)
            body = tail + part.blob
            digest.update(body[:-_HASH_BYTES])
            tail = body[-_HASH_BYTES:]
        if size % _PAGE_BYTES != _HASH_BYTES or digest.digest() != tail:
            raise Failed(f"the copy of etcd at {endpoint} came damaged", hint="try again")
        os.fsync(fd)
        os.replace(draft, file)
    except grpc.aio.AioRpcError as error:
        raise judge(error.code(), error.details() or "", endpoint).error from None
    except OSError as error:
        raise StoreUnavailable(f"cannot write {draft}: {error.strerror}", hint="see the disk") from error
    finally:
        os.close(fd)
        draft.unlink(missing_ok=True)
    return size
