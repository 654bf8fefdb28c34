"""What joining asks of the supervisor: etcd as the folder says, and modules restarted in their new mode."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any, Final

from piccolod import clock, control
from piccolod.config import Etcd
from piccolod.errors import Busy, DeadlineExceeded
from piccolod.paths import Paths
from services.consensus.joining.folder import Folder

_ETCD: Final = "etcd"
_LOOK_S: Final = 0.05
_GONE_S: Final = 8.0  # SIGTERM, and SIGKILL after 3 s
_STARTED_S: Final = 30.0

# Whoever acts for a node, and knows from its own start whether that is alone: the store first, which alone writes.
ACTING: Final = ("persistence", "apps")
# Long enough for the answer to reach whoever asked, by way of the api.
ANSWERED_S: Final = 0.2


class Supervised:
    """Raises Unavailable, DeadlineExceeded when the supervisor does not answer."""

    def __init__(self, paths: Paths) -> None:
        self._socket = paths.supervisor_socket

    async def etcd_as_written(self) -> None:
        """After `etcd.json` was written or removed."""
        await control.ask(self._socket, {"cmd": _ETCD, "do": "reload"})

    async def etcd_gone(self) -> None:
        """No process of it is left. Raises Busy."""
        give_up_at = clock.now() + _GONE_S
        while (etcd := await self._etcd()) is not None and etcd["pid"]:
            if clock.now() > give_up_at:
                raise Busy(f"etcd does not end: {etcd['reason']}", hint="it waits for its disk; try again")
            await asyncio.sleep(_LOOK_S)

    async def etcd_ready(self) -> None:
        """It answers for itself, which a member does also without a leader. Raises DeadlineExceeded with its last state."""
        give_up_at = clock.now() + _STARTED_S
        while (etcd := await self._etcd()) is None or etcd["state"] != "ready":
            if clock.now() > give_up_at:
                said = "was not started" if etcd is None else f"is {etcd['state']}: {etcd['reason']}"
                raise DeadlineExceeded(f"etcd {said}", hint="`piccoloctl modules logs etcd` shows why")
            await asyncio.sleep(_LOOK_S)

    async def restart(self, *modules: str) -> None:
        """In this order; each one's former process has ended before the next is asked. One that is not there is passed over.

        Raises Busy for one that does not end.
        """
        for name in modules:
            before = await self._row(name)
            if before is None or not before["pid"]:
                continue  # its next process begins after this
            await control.ask(self._socket, {"cmd": "restart", "name": name})
            await self._ended(name, int(before["pid"]))

    async def _ended(self, name: str, pid: int) -> None:
        give_up_at = clock.now() + _GONE_S
        while (row := await self._row(name)) is not None and row["pid"] == pid:
            if clock.now() > give_up_at:
                raise Busy(f"{name} does not end", hint=f"`piccoloctl modules show {name}` shows more")
            await asyncio.sleep(_LOOK_S)

    async def _etcd(self) -> dict[str, Any] | None:
        return await self._row(_ETCD)

    async def _row(self, name: str) -> dict[str, Any] | None:
        rows = await control.ask(self._socket, {"cmd": "modules"})
        return next((row for row in rows if row["name"] == name), None)


async def restart_owed(folder: Folder, supervised: Supervised) -> None:
    """Whoever started in the mode that this node was in before, if a crash left it so. Raises as `Supervised`, OSError."""
    if folder.owes_restarts():
        await supervised.restart(*ACTING, "api")
        folder.restarts_done()


async def late(name: str) -> Any:
    """A file that needs grpc and cryptography, which a node alone has no memory for. In a thread: it holds up no beat."""
    return await asyncio.to_thread(importlib.import_module, f"services.consensus.joining.{name}")


async def undo(folder: Folder, supervised: Supervised, etcd: Etcd) -> None:
    """What a failure or a crash left before the commit point. Raises OSError, PiccoloError: then the next start goes on."""
    if (draft := folder.draft()) is not None:
        await (await late("outside")).forget(draft, folder.paths, etcd)
    folder.drop_etcd()
    await supervised.etcd_as_written()
    await supervised.etcd_gone()
    await asyncio.to_thread(folder.wipe)
