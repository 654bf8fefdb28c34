"""Keeps the member of this node in shape: its alarms told by name, its disk space given back, a full one made to go on.

Looks again and again and does the next thing that is due, so that a restart anywhere costs nothing. Each member looks after
itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Final

from piccolod import clock
from piccolod.errors import PiccoloError
from piccolod.etcd_conf import Settings
from services.consensus.etcd import status
from services.consensus.etcd.channel import Tls
from services.consensus.etcd.client import Client
from services.consensus.etcd.failures import Compacted
from services.consensus.etcd.members import members
from services.consensus.etcd.status import Alarm, Status

_LOOK_S: Final = 10.0
_LOOK_IN_TROUBLE_S: Final = 1.0
_RPC_S: Final = 2.0
_DEFRAGMENT_S: Final = 60.0
_EVERY_S: Final = 3600.0  # it answers nobody meanwhile
_AGAIN_S: Final = 300.0  # while it is full or nearly so, and that did not help
_WORTH_BYTES: Final = 32 << 20
# The alarm counts the file, with its free pages: it is made smaller before it comes there.
_CROWDED: Final = 0.75
_WORTH_SHARE: Final = 0.125


class Act(Enum):
    DEFRAGMENT = "defragment"
    SHRINK = "compact and defragment"
    DISARM = "disarm"


def due(told: Status, alarms: Sequence[Alarm], quota_bytes: int, rested_s: float) -> Act | None:
    """The next thing to do. `rested_s`: since the last defragmentation here. Pure."""
    free_bytes = told.db_bytes - told.used_bytes
    full = [alarm for alarm in alarms if alarm.name == "NOSPACE"]
    if not full:
        wasted = free_bytes > told.used_bytes and free_bytes >= _WORTH_BYTES
        crowded = told.db_bytes >= quota_bytes * _CROWDED and free_bytes >= quota_bytes * _WORTH_SHARE
        pause_s = _AGAIN_S if crowded else _EVERY_S
        return Act.DEFRAGMENT if (wasted or crowded) and rested_s >= pause_s else None
    if told.db_bytes < quota_bytes * 0.8:
        mine = any(alarm.member_id == told.header.member_id for alarm in full)
        return Act.DISARM if mine else None
    # What a compaction frees shows in `used_bytes` only after later writes, which a full etcd does not take.
    return Act.SHRINK if rested_s >= _AGAIN_S else None


class Upkeep:
    def __init__(self, client: Client, quota_bytes: int, tell: Callable[[list[str]], Awaitable[None]], log: Any = None) -> None:
        """`client` has one endpoint, the member of this node. `tell` is given the alarms of all members, by name."""
        self._client = client
        self._quota_bytes = quota_bytes
        self._tell = tell
        self._log = log
        self._rested_at = clock.now() - _AGAIN_S

    async def run(self) -> None:
        """For as long as there is a member here. An etcd that does not answer is the supervisor's business."""
        while True:
            pause_s = _LOOK_S
            with suppress(PiccoloError, OSError):
                if await self.look():
                    pause_s = _LOOK_IN_TROUBLE_S
            await asyncio.sleep(pause_s)

    async def look(self) -> tuple[Alarm, ...]:
        """Looks once and does what is due. Returns the alarms. Raises PiccoloError, and OSError when nobody hears of them."""
        alarms = await status.alarms(self._client, _RPC_S)
        await self._tell(await named(self._client, alarms))
        told = await status.status(self._client, self._client.endpoint())
        act = due(told, alarms, self._quota_bytes, clock.now() - self._rested_at)
        if act is not None:
            if self._log is not None:
                self._log.info("keeps etcd in shape", act=act.value, db_bytes=told.db_bytes, used_bytes=told.used_bytes)
            await self._do(act, told, alarms)
        return alarms

    async def _do(self, act: Act, told: Status, alarms: Sequence[Alarm]) -> None:
        if act is Act.SHRINK:
            with suppress(Compacted):  # another member was first
                await status.compact(self._client, told.header.revision, _DEFRAGMENT_S)
        if act in (Act.SHRINK, Act.DEFRAGMENT):
            self._rested_at = clock.now()
            await status.defragment(self._client, self._client.endpoint(), _DEFRAGMENT_S)
        else:
            for alarm in alarms:
                if (alarm.name, alarm.member_id) == ("NOSPACE", told.header.member_id):
                    await status.disarm(self._client, alarm, _RPC_S)


async def named(client: Client, alarms: Sequence[Alarm]) -> list[str]:
    """As people read them: which, and on whom."""
    if not alarms:
        return []
    names = {each.id: each.name for each in await members(client, _RPC_S)}
    return [f"{alarm.name} on {names.get(alarm.member_id) or format(alarm.member_id, 'x')}" for alarm in alarms]


def local_client(settings: Settings) -> Client:
    """Of the member that the settings describe. Raises StoreUnavailable for certificates that cannot be read."""
    tls = Tls.read(map(Path, (settings.ca, settings.cert, settings.key))) if settings.ca else None
    return Client([settings.client_url.partition("://")[2]], tls, rpc_s=_RPC_S)


async def tell_supervisor(control: Path, alarms: list[str]) -> None:
    """Raises OSError."""
    async with asyncio.timeout(_RPC_S):
        reader, writer = await asyncio.open_unix_connection(control)
        try:
            writer.write(json.dumps({"cmd": "etcd", "do": "alarms", "alarms": alarms}).encode() + b"\n")
            await reader.readline()
        finally:
            writer.close()
