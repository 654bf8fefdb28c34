"""What a plan's steps do. Each is idempotent; for a led app the gate is checked before and after each that acts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from piccolod import clock
from piccolod.errors import Failed, NotFound, PiccoloError, TermOver, Unavailable
from piccolod.leadership import leash_table
from piccolod.leadership.grip import Grip, process_start
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.resources import resource_for_app
from piccolod.protocol.consensus import Campaign, Closing, Withdraw
from piccolod.protocol.volumes import Attach, Detach, Ensure, ListVolumes, Purge
from services.apps import desired as change
from services.apps import links, spec, subnets
from services.apps.badge import Badge, container_name
from services.apps.desired import Desired, Version
from services.apps.discreet import discreet, without
from services.apps.documents import Stored
from services.apps.manifest import Manifest
from services.apps.node import Node
from services.apps.podman_status import Status
from services.apps.situation import Do, Plan, Situation

_VOLUME_S: Final = 30.0
_PROOF_S: Final = 5.0
_CGROUPS: Final = Path("/sys/fs/cgroup")
# Where the steps act for the app: in the open term, or not at all.
_LED: Final = frozenset({Do.ATTACH, Do.CREATE, Do.INIT, Do.ARM, Do.START})


class Actions:
    """The steps of one app. `stored` is its document; a step that changes it leaves the new one there."""

    def __init__(self, node: Node, stored: Stored) -> None:
        self._node = node
        self.stored = stored
        self.attached: dict[str, str] | None = None  # volume -> path; None: not known
        self.removed = False
        self.purged = False

    @property
    def _desired(self) -> Desired:
        return self.stored.desired

    @property
    def _app(self) -> str:
        return self.stored.desired.name

    async def run(self, step: Do, plan: Plan, seen: Situation) -> None:
        """Raises PiccoloError, TermOver. Whatever happens, the next look at the situation finds out what is true."""
        version = self._version(plan)
        act: Callable[[], Awaitable[None]] = {
            Do.FETCH: lambda: self._fetch(version),
            Do.PIN: lambda: self._pin(plan, seen),
            Do.CAMPAIGN: self._campaign,
            Do.ATTACH: lambda: self._attach(version),
            Do.CREATE: lambda: self._create(version),
            Do.INIT: lambda: self._init(version),
            Do.ARM: self._arm,
            Do.START: self._start,
            Do.CLOSING: lambda: self._closing(seen),
            Do.STOP: self._stop,
            Do.DISARM: self._disarm,
            Do.REMOVE: self._remove,
            Do.DETACH: self._detach,
            Do.WITHDRAW: lambda: self._withdraw(seen),
            Do.PROMOTE: lambda: self._judge(change.promote(self._desired, plan.note)),
            Do.GIVE_UP: lambda: self._judge(change.give_up(self._desired, plan.note)),
            Do.PURGE: self._purge,
            Do.FORGET: self._forget,
        }[step]
        if step not in _LED or not version.manifest.is_led:
            await act()
            return
        resource = resource_for_app(self._app)
        token = self._node.gate.check(resource)
        await act()
        try:
            self._node.gate.still(resource, token)
        except TermOver:
            await self._kill()
            raise

    def _version(self, plan: Plan) -> Version:
        candidate = self._desired.candidate
        return candidate if plan.trial and candidate is not None else self._desired.current

    # --- up

    async def _fetch(self, version: Version) -> None:
        self._node.images.fetch(version)

    async def _pin(self, plan: Plan, seen: Situation) -> None:
        image = seen.trial_image if plan.trial else seen.image
        await self._judge(change.pin(self._desired, image.id))

    async def _campaign(self) -> None:
        await self._node.module.call(Campaign(resource=resource_for_app(self._app)))

    async def _attach(self, version: Version) -> None:
        term = self._node.term(self._app)
        token = term.token if term is not None else 0
        paths = dict(await self.volumes())  # one that the manifest no longer has is detached at the stop, too
        for name, volume in version.manifest.storage.persistent.items():
            limit = volume.size_limit_bytes
            await self._node.module.call(Ensure(app=self._app, volume=name, size_limit_bytes=limit), timeout_s=_VOLUME_S)
            found = await self._node.module.call(Attach(app=self._app, volume=name, token=token), timeout_s=_VOLUME_S)
            paths[name] = found.path
        self.attached = paths

    async def _create(self, version: Version) -> None:
        manifest = version.manifest
        term = self._node.term(self._app) if manifest.is_led else None
        badge = Badge(
            cluster=self._node.cluster,
            node=self._node.name,
            app=self._app,
            epoch=term.epoch if term is not None else 0,
            generation=self._desired.generation,
            token=term.token if term is not None else 0,
            spec=spec.digest(version, self._desired.restarts),
        )
        variables = {
            secret.env: (await self._secret(secret.name)).decode(errors="surrogateescape")
            for secret in manifest.secrets
            if secret.file is None and secret.env is not None
        }
        await self._provide(manifest)
        await self._ensure_network(spec.wants_internet(manifest))
        body = spec.container(version, badge, self._node.host, self._node.module.paths, self.attached or {}, variables)
        try:
            await self._node.podman.create(body)
        except PiccoloError as error:
            # Their values are known here alone; whoever hears of it hides what the manifest says.
            error.detail = without(error.detail, [(f"environment.{name}", value) for name, value in variables.items()])
            raise

    async def _provide(self, manifest: Manifest) -> None:
        """The files that the app is given, as they are now."""
        files = {secret.name: await self._secret(secret.name) for secret in manifest.secrets if secret.file is not None}
        if files or manifest.app_config is not None:
            await asyncio.to_thread(self._node.files.write, self._app, files, manifest.app_config)
        await asyncio.to_thread(self._node.files.remember, self._desired)

    async def _secret(self, name: str) -> bytes:
        try:
            return await self._node.documents.secret(name)
        except NotFound:
            raise NotFound(f"secret {name} does not exist", hint=f"`piccoloctl secrets set {name}` makes it") from None

    async def _ensure_network(self, internet: bool) -> None:
        podman, name = self._node.podman, spec.network_name(self._app)
        found = await podman.network(name)
        if found is not None and found.get("internal") == (not internet):
            return
        if found is not None:
            await podman.remove_network(name)
        used = subnets.host_routes() + subnets.of_networks(await podman.networks())
        subnet, gateway = subnets.choose(self._app, used)
        await podman.create_network(
            spec.network(self._app, self._node.name, subnet, gateway, self._node.bridge(self._app), internet=internet)
        )

    async def _init(self, version: Version) -> None:
        """The mounts of the files are made here: what changed since the container was created is seen from now on."""
        if not self._node.locked:
            await self._provide(version.manifest)
        await asyncio.to_thread(_sweep, self._node.bridge(self._app))
        await self._node.podman.init(container_name(self._app))

    async def _arm(self) -> None:
        """Under guard before its first instruction: the entry is synced and both leashes hold it."""
        found = await self._found()
        term = self._node.term(self._app)
        if found is None or term is None:
            raise Unavailable(f"the container of {self._app} is gone before it was armed")
        pid = int(found["State"]["Pid"])
        try:
            entry = leash_table.entry_of(
                str(found["Id"]), resource_for_app(self._app), term.token, term.epoch, pid=pid, cgroup=cgroup_of(pid)
            )
        except (ProcessLookupError, ValueError) as error:
            raise Failed(f"the container of {self._app} has no process to guard: {error}") from error
        await self._node.leashes.arm(entry)

    async def _start(self) -> None:
        await self._node.podman.start(container_name(self._app))

    # --- down

    async def _closing(self, seen: Situation) -> None:
        if seen.term is not None:
            await self._node.module.call(Closing(resource=resource_for_app(self._app), token=seen.term.token))

    async def _stop(self) -> None:
        """Politely through podman, then through the kernel; returns when it is proven."""
        found = await self._found()
        if found is None:
            return
        pid = int(found["State"].get("Pid") or 0)
        grace_s = self._desired.current.manifest.stop.grace_s
        try:
            if found["State"]["Status"] == Status.INITIALIZED:
                # It has run nothing yet, so there is nothing to ask politely.
                await self._node.podman.remove(container_name(self._app))
            else:
                await self._node.podman.stop(container_name(self._app), grace_s)
        except PiccoloError as error:
            versions = [each.manifest for each in (self._desired.current, self._desired.candidate) if each is not None]
            reason = discreet(error.detail, *versions)
            self._node.module.log.warning("kills a container that podman does not stop", app=self._app, reason=reason)
            await asyncio.to_thread(kill_process, pid)
        await self._proof(self._entry(str(found["Id"])), pid)

    async def _proof(self, entry: Entry | None, pid: int) -> None:
        give_up_at = clock.now() + _PROOF_S
        while not await asyncio.to_thread(_is_dead, entry, pid):
            if clock.now() >= give_up_at:
                raise Failed(f"the container of {self._app} does not die", hint="it is not fenced; nothing is released")
            await asyncio.sleep(0.02)

    async def _kill(self) -> None:
        """At once and past podman: the term is over."""
        found = await self._found()
        if found is None:
            return
        pid = int(found["State"].get("Pid") or 0)
        await asyncio.to_thread(kill_process, pid)
        if (entry := self._entry(str(found["Id"]))) is not None:
            await asyncio.to_thread(leash_table.kill, entry)

    async def _disarm(self) -> None:
        found = await self._found()
        known = str(found["Id"]) if found is not None else ""
        for entry in self._entries():
            if entry.container != known:
                # podman has forgotten it: nobody else can end it any more.
                await asyncio.to_thread(leash_table.kill, entry)
                await self._proof(entry, entry.pid)
            await self._node.leashes.disarm(entry)

    def _entry(self, container_id: str) -> Entry | None:
        return leash_table.read_entry(self._node.module.paths.leash / f"{container_id}{leash_table.SUFFIX}")

    def _entries(self) -> list[Entry]:
        return self._node.guarded(self._app)

    async def _remove(self) -> None:
        """With its network and its files, which are nobody else's: the next container begins with nothing of what was broken
        off, and a node that it has left keeps none of its secrets."""
        await self._node.podman.remove(container_name(self._app))
        await self._remove_network()
        await asyncio.to_thread(self._node.files.remove, self._app)

    async def _remove_network(self) -> None:
        """podman takes away what it knows of it, leases of addresses too, but never the interface."""
        await asyncio.to_thread(links.delete, self._node.bridge(self._app))
        await self._node.podman.remove_network(spec.network_name(self._app))

    async def _detach(self) -> None:
        for name in await self.volumes():
            await self._node.module.call(Detach(app=self._app, volume=name), timeout_s=_VOLUME_S)
        self.attached = {}

    async def volumes(self) -> dict[str, str]:
        """The attached volumes of the app, volume -> path."""
        if self.attached is None:
            answer = await self._node.module.call(ListVolumes(app=self._app))
            self.attached = {item.name: item.path for item in answer.volumes if item.attached != "no"}
        return self.attached

    async def _withdraw(self, seen: Situation) -> None:
        """Of the term that was seen, and is closing still: one that was not handed over after all goes on."""
        term = self._node.term(self._app)
        if term is None:
            await asyncio.to_thread(self._node.files.remove, self._app)
            return
        if not term.closing or seen.term is None or term.token != seen.term.token:
            return
        if self._entries():
            raise Failed(f"{self._app} still has a container under guard", hint="its term is not given up before it is gone")
        await self._node.module.call(Withdraw(resource=resource_for_app(self._app), token=term.token))
        await asyncio.to_thread(self._node.files.remove, self._app)

    # --- the document

    async def _judge(self, after: Desired) -> None:
        done = await self._node.documents.put(self.stored, after, "apps")
        if done.generation > self.stored.generation:  # a newer one may have been heard of before this answer
            self.stored = done

    async def _purge(self) -> None:
        versions = (self._desired.current, self._desired.previous)
        names = {name for each in versions if each is not None for name in each.manifest.storage.persistent}
        await self._node.module.call(Purge(app=self._app, volumes=tuple(sorted(names))), timeout_s=_VOLUME_S)
        self.purged = True

    async def _forget(self) -> None:
        await self._remove_network()
        await asyncio.to_thread(self._node.files.remove, self._app)
        await self._node.routes.forget(self._app, 1.0)
        await self._node.documents.delete(self.stored, "apps")
        self.removed = True

    async def _found(self) -> dict[str, Any] | None:
        return await self._node.podman.inspect(container_name(self._app))


def cgroup_of(pid: int) -> str:
    """The folder that holds exactly this container: the unified hierarchy's if it has one, else that of `pids` or another."""
    found: dict[str, str] = {}
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise ProcessLookupError(f"no process {pid}") from None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        found[controllers] = path
    roots = [("", _CGROUPS / "unified"), ("", _CGROUPS), *((name, _CGROUPS / name) for name in ("pids", "memory", "freezer"))]
    for controllers, root in roots:
        path = found.get(controllers, "/")
        folder = root / path.lstrip("/")
        # A container that shares its cgroup with the host's processes must not be killed by it.
        if path.count("/") >= 2 and "libpod" in path and (folder / "cgroup.procs").exists():
            return str(folder)
    return ""


def _sweep(bridge: str) -> None:
    """A bridge without a route is half made, and netavark would take it for whole."""
    seen = links.look(bridge)
    if seen is not None and not (seen.up and seen.routes):
        links.delete(bridge)


def kill_process(pid: int) -> None:
    """SIGKILL for a container's first process, which ends its whole pid namespace."""
    if pid <= 1:
        return
    try:
        start = process_start(pid)
    except ProcessLookupError:
        return
    with Grip(pid, start, "", clock.boot_id()) as grip:
        grip.kill()


def _is_dead(entry: Entry | None, pid: int) -> bool:
    if entry is not None:
        return leash_table.proven_dead(entry)
    return pid <= 1 or not os.path.exists(f"/proc/{pid}")
