"""apps: installs, runs and minds every app of this node. Level-triggered: events only say when to look."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from piccolod import clock, cluster_mode, podman_conf
from piccolod.errors import Locked, PiccoloError
from piccolod.leadership import leash_table
from piccolod.leadership.gate import Gate
from piccolod.leadership.guard import GUARD_TICK_S, overdue
from piccolod.leadership.leash_client import LeashClient
from piccolod.leadership.leash_table import TableReader
from piccolod.leadership.page import PageReader
from piccolod.leadership.resources import RESOURCE_KERNEL, app_of
from piccolod.module import Module
from piccolod.protocol.base import Level, Request
from piccolod.protocol.consensus import GetLeadership
from piccolod.protocol.events import (
    AppStateChanged,
    ControlStoreCommit,
    LeadershipRoleChanged,
    LockStateChanged,
    ModuleStateChanged,
    VolumeStateChanged,
)
from piccolod.protocol.images import BringImage
from piccolod.protocol.persistence import GetCryptoStatus
from piccolod.protocol.router import RouteStates
from services.apps import links, orphans, podman_events
from services.apps.app import App
from services.apps.candidacy import Candidacy
from services.apps.commands import Commands
from services.apps.documents import APPS, Documents, Stored
from services.apps.files import AppFiles
from services.apps.hard_stop import HardStops
from services.apps.images import Images
from services.apps.node import Node
from services.apps.podman import Podman, named
from services.apps.quiet import PATIENCE_S
from services.apps.routes import ANSWER_S, Routes
from services.apps.silence import Silence
from services.apps.situation import Leader, State

_TIMER_S: Final = 10.0
_AGAIN_S: Final = 0.3
_BRING_S: Final = 3600.0  # of several images one after the other


class Service:
    def __init__(self, module: Module) -> None:
        self._module = module
        paths = module.paths
        podman = Podman(paths.podman_socket)
        pages = PageReader(paths.page)
        contexts = partial(podman_conf.build_contexts, module.config)
        clustered = cluster_mode.load(paths.cluster) is not None
        self._apps: dict[str, App] = {}
        self._node = Node(
            module=module,
            podman=podman,
            images=Images(
                podman, paths.podman_root, paths.run / "builds", contexts, self._wake_app, self._bring if clustered else None
            ),
            routes=Routes(self._call_router, self._route_refused, self._wake_app),
            documents=Documents(module),
            files=AppFiles(paths.app_files),
            pages=pages,
            gate=Gate(pages),
            leashes=LeashClient(paths),
            silence=Silence(paths.silence),
            clustered=clustered,
        )
        self._heard = False  # who leads what
        self._strange: dict[str, str] = {}
        self._podman_trouble = ""
        self._said: tuple[Level, str] | None = None
        self._refresh = asyncio.Event()
        self._changed = asyncio.Event()
        self._candidacy = Candidacy(self._node, self._apps)
        self._commands = Commands(self._node, self._apps, self._adopt, self._read)

    async def start(self) -> None:
        module = self._module
        self._node.look_at_host()
        self._commands.serve()
        HardStops(self._node, module.paths.run / "measure").serve()
        module.on(LockStateChanged, self._on_lock)
        module.on(ControlStoreCommit, self._on_commit)
        module.on(LeadershipRoleChanged, self._on_role)
        module.on(ModuleStateChanged, self._on_module)
        module.on(VolumeStateChanged, self._on_volume)
        module.on_resync(self._resync)
        for stored in (Stored(desired, 0) for desired in self._node.files.remembered()):
            self._adopt(stored)
        for name, work in self._node.routes.tasks().items():
            module.spawn(work, name=name)
        socket = module.paths.podman_socket
        events = podman_events.watch(socket, self._wake_app, self._wake_all, self._podman_is_back)
        module.spawn(events, name="podman-events")
        module.spawn(links.watch(self._wake_bridge), name="links")
        module.spawn(self._keep_fresh(), name="refresh")
        module.spawn(self._keep_order(), name="order")
        module.spawn(self._guard(), name="guard")
        if self._node.clustered:
            module.spawn(self._candidacy.run(), name="candidacy")
        if self._node.silence.holds():
            asyncio.get_running_loop().call_later(PATIENCE_S, self._wake_all)
        self._refresh.set()

    async def stop(self) -> None:
        """Containers live on, unless piccolod was asked to end them too."""
        if self._module.stop_apps:
            self._node.ends = True
            self._wake_all()
            await asyncio.gather(*(app.settled.wait() for app in self._apps.values()))
        self._node.podman.close()

    async def _bring(self, name: str) -> None:
        await self._module.call(BringImage(name=name), timeout_s=_BRING_S)

    # --- what is wanted

    async def _keep_fresh(self) -> None:
        """Reads the documents again when something says so, and every so often even if nothing does."""
        while True:
            try:
                async with asyncio.timeout(_TIMER_S):
                    await self._refresh.wait()
            except TimeoutError:
                pass
            self._refresh.clear()
            if not await self._read():
                await asyncio.sleep(_AGAIN_S)
                self._refresh.set()
            self._show_health()

    async def _read(self) -> bool:
        """False: to be tried again soon."""
        try:
            if not self._node.cluster:
                self._node.cluster = (await self._module.call(GetCryptoStatus())).cluster_id
            await self._hear_leaders()
            rev, known = await self._documents()
            there = await self._seen()
            strangers = (there or set()) - known
            if strangers or self._absent(rev, known):
                # What was seen before the documents were read, and is not in them, is nobody's.
                rev, known = await self._documents()
                for name in sorted((strangers - known) | self._absent(rev, known)):
                    await self._end_orphan(name, rev)
        except Locked:
            self._node.lock_is(True)
            self._node.known.set()
            return True
        except PiccoloError as error:
            self._module.log.debug("cannot read the documents", reason=error.detail)
            return False
        self._changed.set()
        return there is not None

    async def _hear_leaders(self) -> None:
        """Before the first plan: that nobody is known to lead an app must not be for want of an event."""
        if self._heard or not self._node.clustered:
            return
        for found in (await self._module.call(GetLeadership())).leaderships:
            app = app_of(found.resource)
            if app is not None and found.node not in ("", self._node.name):
                self._node.leaders.setdefault(app, Leader(found.node, "", found.epoch, found.address, found.url))
        self._heard = True

    def _absent(self, rev: int, known: set[str]) -> set[str]:
        """Apps that are minded here though the store, as of `rev`, has forgotten them."""
        return {name for name, app in self._apps.items() if name not in known and app.stored.generation <= rev}

    async def _documents(self) -> tuple[int, set[str]]:
        """Hands every document to its app; (rev, the names of all, also of those that are not understood). Raises Locked."""
        was_locked = self._node.locked
        rev, stored, self._strange = await self._node.documents.apps()
        if was_locked and self._node.locked:
            # Read after the lock was known; an answer that was under way when the lock came proves nothing.
            self._node.lock_is(False)
            self._wake_all()
        for item in stored.values():
            self._adopt(item)
        self._node.known.set()
        return rev, stored.keys() | self._strange.keys()

    async def _seen(self) -> set[str] | None:
        try:
            found = await orphans.seen(self._node)
        except PiccoloError as error:
            self._podman_trouble = error.detail
            return None
        self._podman_trouble = ""
        return found

    async def _end_orphan(self, name: str, rev: int) -> None:
        app = self._apps.get(name)
        if app is not None and app.stored.generation > rev:
            return  # it was installed a moment ago
        if app is not None:
            app.abandon()
            del self._apps[name]
        try:
            await orphans.end(self._node, name, uninstalled=app is not None and app.stored.desired.removing)
        except PiccoloError as error:
            self._module.log.warning("cannot end an app that nobody knows", app=name, reason=named(error))
            self._refresh.set()

    def _adopt(self, stored: Stored) -> App:
        name = stored.desired.name
        app = self._apps.get(name)
        if app is not None and not app.gone.is_set():
            app.want(stored)
            return app
        app = self._apps[name] = App(self._node, stored, self._changed, self._serves)
        self._module.spawn(self._mind(name, app), name=f"app {name}")
        self._changed.set()
        return app

    async def _mind(self, name: str, app: App) -> None:
        await app.run()
        if self._apps.get(name) is app:
            del self._apps[name]
        self._module.publish(AppStateChanged(app=name, state=State.STOPPED, reason="uninstalled", removed=True))
        self._changed.set()

    async def _keep_order(self) -> None:
        """Who waits for whom."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._candidacy.changed()
            for app in self._apps.values():
                if app.pending and app.stored.desired.current.manifest.depends_on:
                    app.wake()
            self._show_health()

    def _serves(self, name: str) -> bool:
        app = self._apps.get(name)
        return (app is not None and app.serves) or self._node.runs_elsewhere(name)

    # --- the guard

    async def _guard(self) -> None:
        """Kills at the deadline what the leashes would kill as well."""
        table = TableReader(self._module.paths.leash)
        told: set[tuple[str, int]] = set()
        while True:
            page = self._node.pages.read()
            now = clock.now()
            for entry in overdue(page, table.entries().values(), now, self._node.boot_id):
                await asyncio.to_thread(leash_table.kill, entry)
                self._wake_resource(entry.resource)
            closing = {(name, term.token) for name, term in page.terms.items() if term.closing} if page is not None else set()
            for resource, _ in closing - told:
                self._wake_resource(resource)  # to be handed over: consensus tells it by the page alone
            told = closing
            finite = page is not None and page.hard_at != clock.FOREVER
            await asyncio.sleep(GUARD_TICK_S if finite else _AGAIN_S)

    # --- hints

    def _on_lock(self, event: LockStateChanged) -> None:
        """An unlock counts once the documents were read: nobody may hear that an app is not there because it was not yet."""
        if event.locked:
            self._node.lock_is(True)
        self._refresh.set()
        self._wake_all()

    def _on_commit(self, event: ControlStoreCommit) -> None:
        if not event.collections or APPS in event.collections or "secrets" in event.collections:
            self._refresh.set()

    def _on_role(self, event: LeadershipRoleChanged) -> None:
        if (app := app_of(event.resource)) is not None:
            self._node.hear(app, event)
            self._wake_app(app)
        elif event.resource == RESOURCE_KERNEL:
            self._wake_all()  # who may write is another one

    def _on_module(self, event: ModuleStateChanged) -> None:
        self._node.routes.worker_changed(event.module)

    def _on_volume(self, event: VolumeStateChanged) -> None:
        if (app := self._apps.get(event.app)) is not None:
            app.volumes_changed()

    def _resync(self) -> None:
        self._refresh.set()
        self._node.routes.refresh()
        self._wake_all()

    def _podman_is_back(self) -> None:
        self._node.look_at_host()
        self._refresh.set()
        self._wake_all()

    def _wake_resource(self, resource: str) -> None:
        if (name := app_of(resource)) is not None:
            self._wake_app(name)

    def _wake_bridge(self, bridge: str) -> None:
        for name in self._apps:
            if self._node.bridge(name) == bridge:
                self._wake_app(name)

    def _wake_app(self, name: str) -> None:
        if (app := self._apps.get(name)) is not None:
            app.wake()

    def _wake_all(self) -> None:
        for app in self._apps.values():
            app.wake()

    async def _call_router(self, request: Request[RouteStates], worker: str) -> RouteStates:
        return await self._module.call(request, timeout_s=ANSWER_S, target=worker)

    def _route_refused(self, app: str, worker: str, why: str) -> None:
        self._module.log.error("the router refused a route", app=app, worker=worker, reason=why)

    def _show_health(self) -> None:
        health = self._health()
        if health != self._said:
            self._said = health
            self._module.health(*health)

    def _health(self) -> tuple[Level, str]:
        if self._podman_trouble:
            return Level.ERROR, self._podman_trouble
        if self._strange:
            name, why = next(iter(self._strange.items()))
            return Level.ERROR, f"{name}: {why}"
        failed = [name for name, app in sorted(self._apps.items()) if app.shown.state is State.FAILED]
        return (Level.WARN, f"failed: {', '.join(failed)}") if failed else (Level.OK, "")
