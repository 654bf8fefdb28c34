"""What a member does about an etcd that its owner keeps: takes up the certificates that he renews, and tells of his alarms.

It compacts, defragments and disarms nothing there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from piccolod.errors import PiccoloError
from services.consensus.access import Access
from services.consensus.etcd import status
from services.consensus.etcd.client import Client
from services.consensus.etcd.upkeep import named

LOOK_S: Final = 10.0
# Files are renewed one after the other: what was found is taken up once it was found again, for half of it costs every channel.
_SETTLED_S: Final = 1.0
_RPC_S: Final = 2.0


class OwnersEtcd:
    """`alarm`: as a sentence, empty without. `unread`: why the certificates are not those that the configuration names now."""

    def __init__(self, client: Client, find: Callable[[], Access], log: Any) -> None:
        """`client`: that of leadership. `find`: how etcd is spoken to by now; blocking."""
        self._client = client
        self._find = find
        self._log = log
        self._known: Access | None = None
        self._seen: Access | None = None  # others, as of the last look
        self.alarm = ""
        self.unread = ""

    async def run(self) -> None:
        """For as long as the process lives. An etcd that does not answer shows elsewhere."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S if self._seen is None else _SETTLED_S)

    async def look(self) -> None:
        await self._renew()
        await self._ask()

    async def _renew(self) -> None:
        try:
            found = await asyncio.to_thread(self._find)
        except PiccoloError as error:
            self.unread = f"the certificates for etcd: {error.detail}"
            return
        self.unread = ""
        if found == self._known:
            self._seen = None
        elif self._known is not None and found != self._seen:
            self._seen = found
        else:
            if self._known is not None:
                self._log.info("takes up other certificates for etcd")
            self._known, self._seen = found, None
            self._client.renew(found.endpoints, found.tls)

    async def _ask(self) -> None:
        try:
            names = await named(self._client, await status.alarms(self._client, _RPC_S))
        except PiccoloError:
            return  # it does not answer, or shows them to nobody
        told = f"etcd has the alarm {', '.join(names)}: its owner has to look after it" if names else ""
        if told and told != self.alarm:
            self._log.error("etcd has an alarm", alarms=names)
        self.alarm = told
