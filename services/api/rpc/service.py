"""The rpc of a member: listens where the others know it to be, serves the routes, keeps the certificate fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from litestar.types import ASGIApp

from piccolod.cluster_mode import Mode
from piccolod.config import at_port
from piccolod.errors import PiccoloError
from piccolod.protocol.joining import JOIN_PATH
from services.api.core import Core
from services.api.rpc import images, relay, renewal, standings, unlocking
from services.api.rpc.app import App
from services.api.rpc.client import Client
from services.api.rpc.files import NodeFiles
from services.api.rpc.images import Images
from services.api.rpc.join import Door
from services.api.rpc.places import Places
from services.api.rpc.relay import Relay
from services.api.rpc.renewal import Renewal
from services.api.rpc.replay import Replay
from services.api.rpc.standings import Standings
from services.api.rpc.unlocking import Unlocking
from services.api.server import Server

_LISTEN_AGAIN_S: Final = 2.0


class Rpc:
    """`fault(part, reason)`: what does not work, for health; an empty reason: it works."""

    def __init__(self, core: Core, mode: Mode, edge: ASGIApp, fault: Callable[[str, str], None]) -> None:
        self._core = core
        self._fault = fault
        config = core.config
        self.files = NodeFiles(config.paths.cluster)
        places = Places(config.paths.cluster, config.rpc_port)
        client = Client(self.files, mode.cluster)
        self.relay = Relay(client, places)
        self.renewal = Renewal(core, self.files, client, places, lambda reason: fault("certificate", reason))
        self.unlocking = Unlocking(core, self.files, client, places, core.tell_locked)
        self.standings = Standings(core, client, places)
        self.images = Images(core, client, places)
        routes = {
            JOIN_PATH: Door(core, client, places).route,
            relay.PATH: Replay(core, edge).route,
            renewal.PATH: self.renewal.route,
            unlocking.PATH: self.unlocking.route,
            standings.PATH: self.standings.route,
            images.PATH: self.images.route,
            images.TAKE_PATH: self.images.take_route,
        }
        self._server = Server(App(core, mode.cluster, routes))

    async def start(self) -> None:
        self.images.serve()
        if not await self._listen():
            self._core.module.spawn(self._listen_again(), name="listen for nodes")
        self._core.module.spawn(self.renewal.run(), name="renewal")
        self._core.module.spawn(self.unlocking.run(), name="unlocking")

    async def close(self, grace_s: float) -> None:
        await self._server.close(grace_s)

    async def _listen(self) -> bool:
        config = self._core.config
        where = at_port(config.node.address, config.rpc_port)
        try:
            context = self.files.server()
            sock = await self._core.module.listen("tcp", config.node.address, config.rpc_port)
            await self._server.serve(sock, context)
        except (PiccoloError, OSError) as error:
            reason = error.detail if isinstance(error, PiccoloError) else str(error)
            self._fault("rpc", f"other nodes cannot call this one at {where}: {reason}")
            return False
        self._fault("rpc", "")
        self._core.log.info("listens for the other nodes", address=where)
        return True

    async def _listen_again(self) -> None:
        while True:
            await asyncio.sleep(_LISTEN_AGAIN_S)
            if await self._listen():
                return
