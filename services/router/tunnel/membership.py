"""What makes this node an end of tunnels: it is a member of a cluster, listens for the others, and shows a good certificate.

A node becomes a member, and is one no more, while this module runs; so that is looked at again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from piccolod import clock, cluster_mode
from piccolod.config import at_port
from piccolod.errors import PiccoloError
from piccolod.module import Module
from piccolod.pki.node_files import NodeFiles
from services.router.flow import Door
from services.router.relay import Relay
from services.router.tunnel.security import Security
from services.router.tunnel.vetting import Vetting

_LOOK_S: Final = 1.0
_TELL_S: Final = 1.0  # between two lines about nodes that were sent away


class Membership:
    """`fault(reason)`: what does not work, for health; empty: nothing."""

    def __init__(self, module: Module, relay: Relay, fault: Callable[[str], None]) -> None:
        self._module = module
        self._relay = relay
        self._fault = fault
        self._door: Door | None = None
        self._untold = 0
        self._tell_at = 0.0
        self.security: Security | None = None
        relay.vet_by(Vetting(module, module.paths.cluster).vet)
        relay.on_refused = self._refused

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Makes it so, as far as that goes now."""
        try:
            mode = cluster_mode.load(self._module.paths.cluster)
            if (mode.cluster if mode else "") != (self.security.cluster if self.security else ""):
                await self._leave()
                if mode is not None:
                    self._join(Security(NodeFiles(self._module.paths.cluster), mode.cluster))
            if self.security is not None:
                if self.security.look():
                    self._module.log.info("took up a certificate for the other nodes")
                if self._door is None:
                    await self._open()
        except PiccoloError as error:
            self._fault(f"no traffic for other nodes: {error.detail}")
        else:
            self._fault("")

    def _join(self, security: Security) -> None:
        """Raises Unavailable."""
        security.server()
        security.client()
        self.security = security
        self._relay.secure(security)

    async def _open(self) -> None:
        """Raises Busy, Unavailable."""
        config = self._module.config
        sock = await self._module.listen("tcp", config.node.address, config.cluster.peer_port)
        self._door = self._relay.open_to_peers(sock)
        where = at_port(config.node.address, config.cluster.peer_port)
        self._module.log.info("takes traffic of the other nodes", address=where)

    async def _leave(self) -> None:
        if self.security is None:
            return
        self.security = None
        self._relay.secure(None)
        if self._door is not None:
            door, self._door = self._door, None
            self._relay.shut(door)
            config = self._module.config
            await self._module.unlisten("tcp", config.node.address, config.cluster.peer_port)

    def _refused(self, source: str, reason: str) -> None:
        now = clock.now()
        if now < self._tell_at:
            self._untold += 1
            return
        self._module.log.warning("sent a node away", source=source, reason=reason, more=self._untold)
        self._untold, self._tell_at = 0, now + _TELL_S
