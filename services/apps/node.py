"""What all apps of this node share: the ways to the outside, and what is known of the node itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from piccolod import clock
from piccolod.errors import PiccoloError
from piccolod.leadership import leash_table
from piccolod.leadership.gate import Gate
from piccolod.leadership.leash_client import LeashClient
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.page import PageReader
from piccolod.leadership.placement import Standing
from piccolod.leadership.resources import RESOURCE_KERNEL, resource_for_app
from piccolod.module import Module
from piccolod.protocol.consensus import TellPhases
from piccolod.protocol.events import LeadershipRoleChanged
from services.apps import host as host_probe
from services.apps import spec
from services.apps.documents import Documents
from services.apps.files import AppFiles
from services.apps.host import Host
from services.apps.images import Images
from services.apps.podman import Podman
from services.apps.routes import Routes
from services.apps.silence import Silence
from services.apps.situation import Leader, State, TermIs


@dataclass(slots=True)
class Node:
    module: Module
    podman: Podman
    images: Images
    routes: Routes
    documents: Documents
    files: AppFiles
    pages: PageReader
    gate: Gate
    leashes: LeashClient
    silence: Silence
    host: Host = field(default_factory=Host)
    boot_id: str = field(default_factory=clock.boot_id)
    cluster: str = ""
    locked: bool = True  # until persistence says otherwise
    known: asyncio.Event = field(default_factory=asyncio.Event)  # persistence has said so, and the documents were read
    ends: bool = False  # piccolod stops, and the apps with it
    clustered: bool = False  # a member of a cluster
    told: Mapping[str, Mapping[str, Standing]] = field(default_factory=dict)  # how every node stands to each app, by node
    leaders: dict[str, Leader] = field(default_factory=dict)  # of apps that another node leads, as it was announced

    def look_at_host(self) -> None:
        self.host = host_probe.probe(self.module.paths.podman_socket)

    def lock_is(self, locked: bool) -> None:
        self.locked = locked
        self.silence.lock_is(locked)

    @property
    def name(self) -> str:
        return self.module.config.node.name

    @property
    def writes(self) -> bool:
        """Whether documents can be changed here."""
        return not self.clustered or self.gate.holds(RESOURCE_KERNEL)

    def could_another(self, app: str) -> bool:
        """Whether another node said that it may lead the app."""
        others = (each.get(app) for name, each in self.told.items() if name != self.name)
        return any(each is not None and not each.reason for each in others)

    def runs_elsewhere(self, app: str) -> bool:
        leader = self.leaders.get(app)
        told = self.told.get(leader.node, {}).get(app) if leader is not None else None
        return told is not None and told.state == State.RUNNING

    def hear(self, app: str, event: LeadershipRoleChanged) -> None:
        """Who leads an app now."""
        if event.node and event.node != self.name:
            self.leaders[app] = Leader(event.node, event.peer, event.epoch, event.address, event.url)
        else:
            self.leaders.pop(app, None)

    def term(self, app: str) -> TermIs | None:
        """The app's term on this node's page; `None` when it has none or it has run out."""
        page = self.pages.read()
        if page is None or page.boot_id != self.boot_id or clock.now() >= page.hard_at:
            return None
        term = page.terms.get(resource_for_app(app))
        return None if term is None else TermIs(term.token, term.epoch, term.closing)

    async def tell_phases(self, app: str, token: int, at: Mapping[str, float]) -> None:
        """For people, so best effort."""
        try:
            await self.module.call(TellPhases(resource=resource_for_app(app), token=token, at=dict(at)))
        except PiccoloError as error:
            self.module.log.debug("could not tell how long a start took", app=app, reason=error.detail)

    def bridge(self, app: str) -> str:
        """The name of the host's interface into the app's network."""
        return spec.bridge_name(self.module.paths.state, app)

    def guarded(self, app: str) -> list[Entry]:
        """What the leashes guard of the app: containers that run, or whose end nobody has confirmed yet."""
        resource = resource_for_app(app)
        return [entry for entry in leash_table.read(self.module.paths.leash).values() if entry.resource == resource]
