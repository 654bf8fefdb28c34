"""The api module: HTTP for people, programs and load balancers. It decides nothing: it asks the modules that do."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

from piccolod import cluster_mode
from piccolod.config import is_plain, split_listen
from piccolod.errors import PiccoloError
from piccolod.module import Module
from piccolod.protocol.base import Level
from services.api import uploads
from services.api.app import build
from services.api.core import Core
from services.api.edge import Edge
from services.api.server import Server, tls_context

if TYPE_CHECKING:
    from services.api.rpc.service import Rpc

APP: Final = build()

_STOP_GRACE_S: Final = 1.0
_LISTEN_AGAIN_S: Final = 2.0


class Service:
    """What is fixed at start: TLS, limits, trusted proxies. A change of them restarts this module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._core = Core(module)
        self._edge = Edge(APP, self._core)
        self._server = Server(self._edge)
        self._faults: dict[str, str] = {}
        self._rpc: Rpc | None = None

    async def start(self) -> None:
        module = self._module
        self._core.listen()
        await asyncio.to_thread(self._clear_uploads)
        await self._join_others()
        await self._server.serve(await module.listen("unix", str(module.paths.api_socket)))
        for item in module.config.api.listen:
            await self._listen(item)
        if self._core.setup_code.enabled:
            module.log.warning("first setup from another machine needs this code", setup_code=self._core.setup_code.text)
        self._judge()
        if any(item in self._faults for item in module.config.api.listen):
            module.spawn(self._listen_again(), name="listen again")

    async def stop(self) -> None:
        self._core.closing.set()
        closing = [self._server.close(_STOP_GRACE_S)]
        if self._rpc is not None:
            closing.append(self._rpc.close(_STOP_GRACE_S))
        await asyncio.gather(*closing)

    async def _join_others(self) -> None:
        """On a member of a cluster: calls between its nodes. A node alone does not even load what they take."""
        try:
            mode = cluster_mode.load(self._module.paths.cluster)
        except PiccoloError as error:
            self._fault("cluster", error.detail)
            return
        if mode is not None:
            from services.api.rpc.service import Rpc

            self._core.mode = mode
            self._rpc = Rpc(self._core, mode, self._edge, self._fault)
            self._core.relay = self._rpc.relay
            self._core.standings = self._rpc.standings
            self._core.images = self._rpc.images
            await self._rpc.start()

    def _fault(self, part: str, reason: str) -> None:
        if self._faults.get(part, "") == reason:
            return
        if reason:
            self._faults[part] = reason
        else:
            self._faults.pop(part, None)
        self._judge()

    async def _listen(self, item: str) -> None:
        """What cannot be opened is named in health; the unix socket and the other addresses serve on."""
        try:
            await self._open(item)
        except (PiccoloError, OSError) as error:
            reason = error.detail if isinstance(error, PiccoloError) else f"{item}: {error}"
            if self._faults.get(item) != reason:
                self._module.log.error("cannot listen", address=item, reason=reason)
            self._faults[item] = reason

    async def _listen_again(self) -> None:
        while missing := [item for item in self._module.config.api.listen if item in self._faults]:
            await asyncio.sleep(_LISTEN_AGAIN_S)
            for item in missing:
                await self._listen(item)
            self._judge()

    async def _open(self, item: str) -> None:
        host, port = split_listen(item)
        tls = self._tls(item)
        await self._server.serve(await self._module.listen("tcp", host, port), tls)
        self._faults.pop(item, None)

    def _tls(self, item: str) -> ssl.SSLContext | None:
        api = self._module.config.api
        return None if is_plain(api, item) else tls_context(api.cert, api.key)

    def _clear_uploads(self) -> None:
        try:
            uploads.clear(self._core.uploads_folder)
        except OSError as error:
            self._faults["uploads"] = f"images cannot be uploaded: {self._core.uploads_folder}: {error.strerror}"

    def _judge(self) -> None:
        if not self._faults:
            self._module.health(Level.OK)
            return
        deaf = len([item for item in self._module.config.api.listen if item in self._faults])
        self._module.health(Level.ERROR if deaf else Level.WARN, "; ".join(self._faults.values()))
