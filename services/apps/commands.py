"""What people ask of apps. A change is checked whole, committed in one entry, and done afterwards by the app's own loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from piccolod import clock
from piccolod.errors import (
    Conflict,
    DeadlineExceeded,
    Exists,
    Invalid,
    LeaderHint,
    Locked,
    NotFound,
    NotLeader,
    NotSupported,
    PiccoloError,
    Problem,
    Unavailable,
)
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.module import Caller
from piccolod.protocol.apps import (
    AppDocument,
    AppDocuments,
    ApplyApp,
    ChangeApp,
    Changed,
    GetAppLogs,
    GetManifestSchema,
    InstallApp,
    ListApps,
    LogLines,
    ManifestSchema,
    PlanApp,
    Quiesce,
    Quiesced,
    Resume,
    ShowApp,
    UninstallApp,
    UpdateApp,
    Validated,
    ValidateManifest,
)
from piccolod.protocol.apps import Manifest as ManifestText
from piccolod.protocol.apps import Plan as ShownPlan
from piccolod.protocol.base import Nothing
from piccolod.protocol.volumes import MakeKeys
from services.apps import desired as change
from services.apps import logs, ports, spec, view
from services.apps.app import App
from services.apps.badge import container_name
from services.apps.capabilities import as_good_as_root
from services.apps.checks import CHECKS
from services.apps.desired import Desired, Version
from services.apps.documents import Stored
from services.apps.image_commands import ImageCommands
from services.apps.manifest import Manifest, Pull
from services.apps.node import Node
from services.apps.quiet import PATIENCE_S
from services.apps.rules import Surroundings
from services.apps.schema import schema
from services.apps.validate import Checked, validate

T = TypeVar("T")

# Somebody else may take a port or change the app between our look and our commit: look again this often.
_TRIES: Final = 5
_SHORT_BYTES: Final = 8192
_ANSWER_MARGIN_S: Final = 0.5
# A command that comes in the first moments of this module waits for the documents instead of taking them for locked.
_START_S: Final = 3.0


class Commands:
    """`adopt(stored)` hands a committed document to the app's loop and returns the app; `read()` reads all documents."""

    def __init__(
        self, node: Node, apps: dict[str, App], adopt: Callable[[Stored], App], read: Callable[[], Awaitable[object]]
    ) -> None:
        self._node, self._apps, self._adopt, self._read = node, apps, adopt, read
        self._images = ImageCommands(node, apps, self._readable)

    def serve(self) -> None:
        self._images.serve()
        serve = self._node.module.serve
        serve(ListApps, self.list)
        serve(ShowApp, self.show)
        serve(ValidateManifest, self.validate)
        serve(PlanApp, self.plan)
        serve(InstallApp, self.install)
        serve(ApplyApp, self.apply)
        serve(ChangeApp, self.change)
        serve(UpdateApp, self.update)
        serve(UninstallApp, self.uninstall)
        serve(Quiesce, self.quiesce)
        serve(Resume, self.resume)
        serve(GetAppLogs, self.logs)
        serve(GetManifestSchema, self.schema)

    # --- questions

    async def list(self, request: ListApps, caller: Caller) -> AppDocuments:
        await self._readable()
        return AppDocuments(apps=tuple(view.document(self._node, self._apps[name]) for name in sorted(self._apps)))

    async def show(self, request: ShowApp, caller: Caller) -> AppDocument:
        await self._readable()
        return view.document(self._node, self._app(request.name))

    async def validate(self, request: ValidateManifest, caller: Caller) -> Validated:
        checked = await self._checked(request.manifest, request.consent)
        return Validated(name=checked.manifest.name, warnings=checked.warnings)

    async def plan(self, request: PlanApp, caller: Caller) -> ShownPlan:
        await self._readable()
        checked = await self._checked(request.manifest, request.consent)
        manifest = checked.manifest
        app = self._apps.get(manifest.name)
        if app is None:
            return ShownPlan(name=manifest.name, action="install", changes=(), restarts=False, warnings=checked.warnings)
        current = app.stored.desired
        changes = change.differences(current.current.manifest, manifest)
        after = Version(manifest=manifest, image_id=self._kept_image(current, manifest))
        before = spec.digest(current.current, current.restarts)
        return ShownPlan(
            name=manifest.name,
            action="change" if changes else "none",
            changes=changes,
            restarts=current.running and spec.digest(after, current.restarts) != before,
            warnings=checked.warnings,
        )

    async def schema(self, request: GetManifestSchema, caller: Caller) -> ManifestSchema:
        return ManifestSchema(document=schema())

    async def logs(self, request: GetAppLogs, caller: Caller) -> LogLines:
        await self._readable()
        self._app(request.name)
        since = logs.since_of(request.cursor, request.since_ms)
        # Everything after the cursor is asked for; without one the last lines are enough.
        tail = logs.MAX_TAIL if since else max(1, min(request.tail, logs.MAX_TAIL))
        try:
            raw = await self._node.podman.logs(container_name(request.name), tail=tail, since=since)
        except NotFound:
            if (leader := self._node.leaders.get(request.name)) is not None:
                hint = LeaderHint(leader.node, leader.address, leader.url, leader.epoch)
                raise NotLeader(f"{request.name} runs on {leader.node}", hint="its log is there", leader=hint) from None
            return LogLines(lines=(), cursor=request.cursor)
        return logs.page(raw, tail=request.tail, since_ms=request.since_ms, cursor=request.cursor)

    # --- changes

    async def install(self, request: InstallApp, caller: Caller) -> Changed:
        await self._writable()
        checked = await self._checked(request.manifest, request.consent)
        return await self._put(checked, request.author, caller, must_be_new=True)

    async def apply(self, request: ApplyApp, caller: Caller) -> Changed:
        await self._writable()
        checked = await self._checked(request.manifest, request.consent)
        if request.name and request.name != checked.manifest.name:
            raise Invalid(f"the manifest is of {checked.manifest.name}, not of {request.name}", hint="an app cannot be renamed")
        return await self._put(checked, request.author, caller, must_be_new=False)

    async def _put(self, checked: Checked, author: str, caller: Caller, *, must_be_new: bool) -> Changed:
        manifest = checked.manifest
        before: Stored | None = None
        for attempt in range(_TRIES):
            before = await self._stored(manifest.name)
            if before is not None and caller.idem and before.desired.idem == caller.idem:
                return self._changed(before, checked.warnings)
            if before is not None and must_be_new:
                raise Exists(f"{manifest.name} is already installed", hint="`apply` changes it, `uninstall` removes it")
            try:
                after = await self._next(before, manifest, caller.idem)
                if before is not None and after == before.desired:
                    return self._changed(before, checked.warnings)
                await self._make_keys(manifest)
                stored = await self._node.documents.put(before, after, author, caller.idem)
            except Conflict as error:
                if error.errors or attempt == _TRIES - 1:
                    raise
                continue
            return self._changed(stored, checked.warnings)
        raise Conflict(f"{manifest.name} is being changed by somebody else", hint="try again")

    async def _make_keys(self, manifest: Manifest) -> None:
        """Of volumes that are made on the node that leads the app, which may write no key."""
        if self._node.clustered and manifest.is_stateful:
            names = tuple(sorted(manifest.storage.persistent))
            await self._node.module.call(MakeKeys(app=manifest.name, volumes=names))

    async def _next(self, before: Stored | None, manifest: Manifest, idem: str) -> Desired:
        current = before.desired if before is not None else None
        owners = await self._node.documents.port_owners()
        assigned = ports.assign(
            manifest, owners, current.ports if current is not None else {}, self._node.module.config.public_ports, _is_free
        )
        if current is None:
            return change.install(manifest, await self._image_id(manifest), assigned, self._node.boot_id, idem)
        kept = self._kept_image(current, manifest)
        image_id = kept or await self._image_id(manifest)
        return change.apply(current, manifest, image_id, assigned, self._node.boot_id, idem)

    def _kept_image(self, current: Desired, manifest: Manifest) -> str:
        """The image stays what it is unless the manifest names another one."""
        old = current.current.manifest
        same = (old.image, old.build) == (manifest.image, manifest.build) and manifest.pull is not Pull.ALWAYS
        return current.current.image_id if same else ""

    async def _image_id(self, manifest: Manifest) -> str:
        """What the name means now; empty when that is not known here yet: the app's loop fetches it."""
        if manifest.pull is Pull.ALWAYS and manifest.build is None:
            return ""
        try:
            async with asyncio.timeout(2.0):
                return await self._node.images.find(manifest)
        except (TimeoutError, PiccoloError):
            return ""  # podman is away: the change is committed, and the app says why it is pending

    async def change(self, request: ChangeApp, caller: Caller) -> Changed:
        await self._writable()
        steps: dict[str, Callable[[Desired], Desired]] = {
            "start": lambda old: change.start(old, self._node.boot_id, caller.idem),
            "stop": lambda old: change.stop(old, caller.idem),
            "restart": lambda old: change.restart(old, self._node.boot_id, caller.idem),
            "enable": lambda old: change.enable(old, True, caller.idem),
            "disable": lambda old: change.enable(old, False, caller.idem),
        }
        if request.action == "revert":
            return await self._revert(request, caller)
        if request.action not in steps:
            raise Invalid(f"{request.action!r} is no action", hint=", ".join((*steps, "revert")))
        return await self._edit(request.name, steps[request.action], request.author, caller)

    async def _revert(self, request: ChangeApp, caller: Caller) -> Changed:
        before = await self._node.documents.app(request.name)
        self._snapshots(before.desired, request.without_snapshot, "revert")
        target = before.desired.previous
        back = before.desired.current if before.desired.candidate is not None else target
        if back is not None:
            _consented(back.manifest, request.consent, "revert")
        assigned = dict(before.desired.ports)
        if target is not None and before.desired.candidate is None:
            owners = await self._node.documents.port_owners()
            assigned = ports.assign(target.manifest, owners, assigned, self._node.module.config.public_ports, _is_free)

        def next_of(old: Desired) -> Desired:
            after = change.revert(old, assigned, caller.idem)
            _consented(after.current.manifest, request.consent, "revert")  # somebody may have changed it since
            return after

        return await self._edit(request.name, next_of, request.author, caller)

    async def update(self, request: UpdateApp, caller: Caller) -> Changed:
        await self._writable()
        before = await self._node.documents.app(request.name)
        self._snapshots(before.desired, request.without_snapshot, "update")
        manifest = before.desired.current.manifest
        _consented(manifest, request.consent, "update")
        if request.image:
            try:
                CHECKS["image"](request.image)
            except ValueError as error:
                raise Invalid(str(error)) from None
            manifest = change.update(before.desired, request.image, "", "").candidate.manifest  # type: ignore[union-attr]
        image_id = await self._image_id(manifest)
        if not image_id and manifest.pull is Pull.NEVER and manifest.build is None:
            raise NotFound(
                f"image {manifest.image} is not on this node, and `pull` is never", hint="`piccoloctl images load FILE`"
            )

        def next_of(old: Desired) -> Desired:
            _consented(old.current.manifest, request.consent, "update")  # somebody may have changed it since
            return change.update(old, request.image, image_id, caller.idem)

        return await self._edit(request.name, next_of, request.author, caller)

    def _snapshots(self, desired: Desired, without: bool, action: str) -> None:
        if desired.current.manifest.is_stateful and not without:
            raise NotSupported(
                f"not supported yet: snapshots of volumes, so {action} cannot take the data of {desired.name} back",
                hint="--without-snapshot leaves the data as it is",
            )

    async def uninstall(self, request: UninstallApp, caller: Caller) -> Nothing:
        """Answers when nothing of the app is left, or says what is still to be done."""
        await self._writable()
        await self._edit(request.name, lambda old: change.uninstall(old, request.purge, caller.idem), request.author, caller)
        app = self._apps.get(request.name)
        if app is None:
            return Nothing()
        left_s = caller.deadline_at - clock.now() - _ANSWER_MARGIN_S
        try:
            async with asyncio.timeout(max(0.1, left_s)):
                await app.gone.wait()
        except TimeoutError:
            reason = app.shown.reason
            raise DeadlineExceeded(
                f"{request.name} is not gone yet: {reason}", hint="it is marked to be uninstalled, and that goes on"
            ) from None
        return Nothing()

    async def quiesce(self, request: Quiesce, caller: Caller) -> Quiesced:
        """Answers when every led app is at rest, or says which is not by the deadline."""
        # A module that has just started takes the store for locked; what it hears first is then no unlock.
        self._node.silence.begin(request.wish, locked=self._node.locked and self._node.known.is_set())
        asyncio.get_running_loop().call_later(PATIENCE_S, self._wake_all)
        self._wake_all()
        led = {name: app for name, app in self._apps.items() if app.stored.desired.current.manifest.is_led}
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.1, caller.deadline_at - clock.now() - _ANSWER_MARGIN_S)):
                await asyncio.gather(*(app.at_rest.wait() for app in led.values()))
        rested = {name for name, app in led.items() if app.at_rest.is_set()}
        return Quiesced(still_running=tuple(sorted(led.keys() - rested)))

    async def resume(self, request: Resume, caller: Caller) -> Nothing:
        self._node.silence.call_off(request.wish)
        self._wake_all()
        return Nothing()

    def _wake_all(self) -> None:
        for app in self._apps.values():
            app.wake()

    async def _edit(self, name: str, edit: Callable[[Desired], Desired], author: str, caller: Caller) -> Changed:
        for attempt in range(_TRIES):
            before = await self._node.documents.app(name)
            if caller.idem and before.desired.idem == caller.idem:
                return self._changed(before)
            after = edit(before.desired)
            if after == before.desired:
                return self._changed(before)
            try:
                return self._changed(await self._node.documents.put(before, after, author, caller.idem))
            except Conflict as error:
                if error.errors or attempt == _TRIES - 1:
                    raise
        raise Conflict(f"{name} is being changed by somebody else", hint="try again")

    # --- common

    async def _checked(self, text: ManifestText, consent: bool) -> Checked:
        around = Surroundings(
            depends_on={name: app.stored.desired.current.manifest.depends_on for name, app in self._apps.items()},
            consent=consent,
            host=self._node.host,
            strict=self._node.module.config.apps.strict,
            nodes=frozenset({self._node.name, *self._node.told}),
        )
        if len(text.text) <= _SHORT_BYTES:
            return validate(text.text, text.format, around)
        return await asyncio.to_thread(validate, text.text, text.format, around)

    async def _stored(self, name: str) -> Stored | None:
        try:
            return await self._node.documents.app(name)
        except NotFound:
            return None

    def _changed(self, stored: Stored, warnings: tuple[str, ...] = ()) -> Changed:
        app = self._adopt(stored)
        return Changed(app=view.document(self._node, app), rev=stored.generation, warnings=warnings)

    def _app(self, name: str) -> App:
        if (app := self._apps.get(name)) is None:
            raise NotFound(f"no app is called {name!r}", hint="`piccoloctl apps list` shows all")
        return app

    async def _readable(self) -> None:
        if not self._node.known.is_set():
            try:
                async with asyncio.timeout(_START_S):
                    await self._node.known.wait()
            except TimeoutError:
                raise Unavailable(
                    "apps has just started and does not know the apps yet", hint="try again in a moment"
                ) from None
        if self._node.locked:
            # The event of an unlock may be on its way: who has just unlocked must not hear that it is locked.
            await self._read()
        if self._node.locked:
            raise Locked("the control store is locked", hint="`piccoloctl unlock`")

    async def _writable(self) -> None:
        """An early word; the store itself refuses for certain, and knows why the kernel is not led."""
        await self._readable()
        if not self._node.gate.holds(RESOURCE_KERNEL):
            await self._node.documents.check_writable()


def _consented(manifest: Manifest, consent: bool, action: str) -> None:
    """Raises Invalid: what then runs could take the whole machine, and nobody who may say so has agreed to it."""
    permissions = manifest.permissions
    if consent or not (permissions.privileged or as_good_as_root(permissions.capabilities)):
        return
    path = "permissions.privileged" if permissions.privileged else "permissions.capabilities"
    message = f"gives {manifest.name} the whole machine: {action} needs the admin's consent (--allow-privileged)"
    raise Invalid(message, errors=(Problem(path, message),))


def _is_free(port: int) -> bool:
    """Whether nobody on this host listens on the port right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104  (tested as the router binds it)
        except OSError:
            return False
        return True
