"""Wiring of volumes: commands, the watch over encrypting processes, health."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from piccolod import cluster_mode
from piccolod.errors import Busy, NotFound, NotLeader, PiccoloError, TermOver, Unavailable
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader
from piccolod.leadership.resources import resource_for_app
from piccolod.module import Caller, Module
from piccolod.protocol.base import Level, Nothing
from piccolod.protocol.events import LockStateChanged, VolumeStateChanged
from piccolod.protocol.persistence import ForgetVolumeKey, GetVolumeKey
from piccolod.protocol.volumes import (
    Attach,
    Detach,
    Ensure,
    ListVolumes,
    MakeKeys,
    Purge,
    VolumeDocument,
    VolumeDocuments,
)
from services.volumes import gocryptfs, image, plan, process
from services.volumes.driver import Driver
from services.volumes.journal import Record
from services.volumes.plan import Body, State, VolumeId

T = TypeVar("T")

_LOOK_AROUND_S: Final = 60.0
_KEY_S: Final = 5.0

# Texts of VolumeStateChanged that apps and people read.
DIED: Final = "its encryption process died"
AGAIN: Final = "attached again after its encryption process died: what had files open must start again"


class Service:
    def __init__(self, module: Module) -> None:
        self._module = module
        self._driver = Driver(module.paths)
        self._gate = Gate(PageReader(module.paths.page))
        self._turns: defaultdict[VolumeId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._watched: dict[VolumeId, int] = {}  # pidfd of its gocryptfs
        self._broken: dict[VolumeId, str] = {}
        self._judged: tuple[Level, str] | None = None

    async def start(self) -> None:
        self._module.serve(Ensure, self._ensure)
        self._module.serve(Attach, self._attach)
        self._module.serve(Detach, self._detach)
        self._module.serve(ListVolumes, self._list)
        self._module.serve(MakeKeys, self._make_keys)
        self._module.serve(Purge, self._purge)
        self._module.on(LockStateChanged, self._lock_changed)
        for record in self._driver.journal.records():
            self._adopt(record)
        self._module.spawn(self._look_around(), name="look around")

    async def stop(self) -> None:
        """Mounts stay, for apps use them and the next life adopts them; unless the node stops its apps too."""
        for volume in list(self._watched):
            self._unwatch(volume)
            if self._module.stop_apps:
                try:
                    await asyncio.to_thread(self._driver.detach, volume)
                except PiccoloError as error:
                    self._module.log.warning("left a volume attached", volume=str(volume), reason=error.detail)

    # --- commands

    async def _ensure(self, request: Ensure, _caller: Caller) -> VolumeDocument:
        volume = VolumeId.checked(request.app, request.volume)
        wished = plan.shape_for(request.size_limit_bytes, image.why_not(), strict=self._module.config.apps.strict)

        async def work() -> VolumeDocument:
            await self._finish_purge(volume)
            if await asyncio.to_thread(self._driver.exists, volume):
                await asyncio.to_thread(self._driver.reshape, volume, wished)
            else:
                _require_tools()
                key = await self._key(volume, create=True)
                await asyncio.to_thread(self._driver.create, volume, wished, key)
                self._module.log.info("made volume", volume=str(volume), quota=plan.describe(wished))
            return await self._document(volume)

        return await self._alone(volume, work)

    async def _attach(self, request: Attach, _caller: Caller) -> VolumeDocument:
        volume = VolumeId.checked(request.app, request.volume)

        async def work() -> VolumeDocument:
            await self._mount(volume, request.token, reason="")
            return await self._document(volume)

        return await self._alone(volume, work)

    async def _detach(self, request: Detach, _caller: Caller) -> Nothing:
        volume = VolumeId.checked(request.app, request.volume)

        async def work() -> Nothing:
            before = await asyncio.to_thread(self._driver.look, volume)
            await asyncio.to_thread(self._driver.detach, volume)
            self._unwatch(volume)
            self._broken.pop(volume, None)
            if before.state is not State.DETACHED:
                self._tell(volume, State.DETACHED, "")
            return Nothing()

        return await self._alone(volume, work)

    async def _list(self, request: ListVolumes, _caller: Caller) -> VolumeDocuments:
        volumes = await asyncio.to_thread(self._driver.volumes)
        documents = []
        for volume in volumes:
            if request.app in (None, volume.app):
                with suppress(NotFound):  # purged while we looked
                    documents.append(await self._document(volume))
        return VolumeDocuments(volumes=tuple(documents))

    async def _make_keys(self, request: MakeKeys, _caller: Caller) -> Nothing:
        for name in request.volumes:
            await self._key(VolumeId.checked(request.app, name), create=True)
        return Nothing()

    async def _purge(self, request: Purge, _caller: Caller) -> Nothing:
        VolumeId.checked(request.app, "any")
        volumes = [volume for volume in await asyncio.to_thread(self._driver.volumes) if volume.app == request.app]
        for volume in volumes:
            if (await asyncio.to_thread(self._driver.look, volume)).record is not None:
                raise Busy(f"volume {volume} is attached", hint="stop the app first")
        for volume in volumes:

            async def work(volume: VolumeId = volume) -> None:
                await asyncio.to_thread(self._driver.set_aside, volume)
                self._broken.pop(volume, None)
                self._tell(volume, State.DETACHED, "deleted")

            await self._alone(volume, work)
        for volume in await asyncio.to_thread(self._driver.gone):
            if volume.app == request.app:
                await self._alone(volume, lambda volume=volume: self._finish_purge(volume, asked=True))  # type: ignore[misc]
        for volume in {VolumeId.checked(request.app, name) for name in request.volumes} - set(volumes):
            await self._forget_key(volume)
        return Nothing()

    # --- parts

    async def _mount(self, volume: VolumeId, token: int, reason: str) -> None:
        permit = self._permit(volume, token)
        permit()
        _require_tools()
        await asyncio.to_thread(self._driver.describe, volume)
        look = await asyncio.to_thread(self._driver.look, volume)
        key = None if look.state is State.ATTACHED else await self._key(volume, create=False)
        record = await asyncio.to_thread(self._driver.attach, volume, token, key, permit)
        self._watch(record)
        self._broken.pop(volume, None)
        if look.state is not State.ATTACHED:
            self._module.log.info("attached volume", volume=str(volume), pid=record.pid, token=token, reason=reason)
            self._tell(volume, State.ATTACHED, reason)

    def _permit(self, volume: VolumeId, token: int) -> Callable[[], None]:
        resource = resource_for_app(volume.app)

        def permit() -> None:
            try:
                held = self._gate.check(resource).token
            except TermOver as over:
                raise NotLeader(f"volume {volume} cannot be attached here: {over.reason}") from over
            if held != token:
                raise NotLeader(f"volume {volume} cannot be attached here: the term that asked is over")

        return permit

    async def _key(self, volume: VolumeId, *, create: bool) -> bytes:
        request = GetVolumeKey(app=volume.app, volume=volume.volume, create=create)
        return (await self._module.call(request, timeout_s=_KEY_S)).key

    async def _finish_purge(self, volume: VolumeId, *, asked: bool = False) -> None:
        """The rest of a purge. The key of a volume that was made anew under the same name stays; in a cluster that may be on
        another node, so what nobody has asked for now keeps its key there."""
        if volume not in await asyncio.to_thread(self._driver.gone):
            return
        alone = await asyncio.to_thread(cluster_mode.load, self._module.paths.cluster) is None
        if (asked or alone) and not await asyncio.to_thread(self._driver.exists, volume):
            await self._forget_key(volume)
        await asyncio.to_thread(self._driver.remove_gone, volume)
        self._module.log.info("deleted volume", volume=str(volume))

    async def _forget_key(self, volume: VolumeId) -> None:
        """Where the kernel is led; that node purges the app too."""
        with suppress(NotFound, NotLeader):
            await self._module.call(ForgetVolumeKey(app=volume.app, volume=volume.volume), timeout_s=_KEY_S)

    async def _document(self, volume: VolumeId) -> VolumeDocument:
        def read() -> VolumeDocument:
            description = self._driver.describe(volume)
            attached = self._driver.look(volume).state is State.ATTACHED
            return VolumeDocument(
                app=volume.app,
                name=volume.volume,
                attached=State.ATTACHED if attached else State.DETACHED,
                path=str(self._driver.mount_point(volume)) if attached else "",
                size_limit_bytes=description.limit_bytes,
                used_bytes=self._driver.used_bytes(volume),
                quota=plan.describe(description.shape),
            )

        return await asyncio.to_thread(read)

    async def _alone(self, volume: VolumeId, work: Callable[[], Awaitable[T]]) -> T:
        """Runs `work` as the only one for its volume, to its end: a caller that gives up does not let in the next one."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def turn() -> None:
            async with self._turns[volume]:
                try:
                    result = await work()
                except Exception as error:
                    if outcome.cancelled():
                        self._module.log.warning("nobody waits for this failure", volume=str(volume), error=str(error))
                    else:
                        outcome.set_exception(error)
                else:
                    if not outcome.cancelled():
                        outcome.set_result(result)
            await self._judge()

        self._module.spawn(turn(), name=f"volume {volume}")
        return await outcome

    # --- the encrypting processes

    def _adopt(self, record: Record) -> None:
        if process.alive(record.pid, record.started):
            self._watch(record)
            self._tell(record.id, State.ATTACHED, "")
            if not record.device:
                self._module.spawn(self._settle(record), name=f"settle {record.id}")
        else:
            self._module.spawn(self._after_death(record), name=f"recover {record.id}")

    async def _settle(self, record: Record) -> None:
        """A start of an earlier life comes to its end: attached, or undone."""
        with suppress(PiccoloError):
            await self._alone(record.id, lambda: self._mount(record.id, record.token, ""))

    def _watch(self, record: Record) -> None:
        self._unwatch(record.id)
        try:
            fd = os.pidfd_open(record.pid)
        except ProcessLookupError:
            self._module.spawn(self._after_death(record), name=f"recover {record.id}")
            return
        self._watched[record.id] = fd
        asyncio.get_running_loop().add_reader(fd, self._died, record)

    def _unwatch(self, volume: VolumeId) -> None:
        fd = self._watched.pop(volume, None)
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def _died(self, record: Record) -> None:
        self._unwatch(record.id)
        process.reap(record.pid)
        self._module.spawn(self._after_death(record), name=f"recover {record.id}")

    async def _after_death(self, record: Record) -> None:
        """The volume comes back while its term lasts; else the dead mount goes away."""
        volume = record.id

        async def work() -> None:
            look = await asyncio.to_thread(self._driver.look, volume)
            if look.record is not None or self._driver.journal.read(volume) is None:
                return  # detached on purpose, or attached again already
            self._module.log.error("gocryptfs died", volume=str(volume), pid=record.pid)
            self._tell(volume, State.DETACHED, DIED)
            try:
                await self._mount(volume, record.token, AGAIN)
            except PiccoloError as error:
                self._broken[volume] = error.detail
                self._tell(volume, State.DETACHED, f"{DIED}; {error.detail}")
                await asyncio.to_thread(self._driver.detach, volume)

        try:
            await self._alone(volume, work)
        except PiccoloError as error:
            self._broken[volume] = error.detail
            await self._judge()

    # --- health

    async def _look_around(self) -> None:
        await asyncio.to_thread(self._driver.drop_half_made)
        await self._finish_purges()
        while True:
            await self._judge()
            await asyncio.sleep(_LOOK_AROUND_S)

    def _lock_changed(self, event: LockStateChanged) -> None:
        if not event.locked:
            self._module.spawn(self._finish_purges(), name="finish purges")

    async def _finish_purges(self) -> None:
        for volume in await asyncio.to_thread(self._driver.gone):
            with suppress(PiccoloError):  # locked, or persistence is away: the next unlock comes here again
                await self._alone(volume, lambda volume=volume: self._finish_purge(volume))  # type: ignore[misc]

    async def _judge(self) -> None:
        judged = await asyncio.to_thread(self._judgement)
        if judged != self._judged:
            self._judged = judged
            self._module.health(*judged)

    def _judgement(self) -> tuple[Level, str]:
        volumes = self._driver.volumes()
        if missing := gocryptfs.why_not():
            return (Level.ERROR if volumes else Level.WARN), missing
        if self._broken:
            return Level.ERROR, "; ".join(f"volume {volume}: {why}" for volume, why in sorted(self._broken.items()))
        reasons = []
        promised = stored = 0
        for volume in volumes:
            try:
                description = self._driver.describe(volume)
                if description.shape.warning:
                    reasons.append(f"volume {volume}: {description.shape.warning}")
                if description.shape.body is Body.IMAGE:
                    promised += description.limit_bytes
                    stored += self._driver.stored_bytes(volume)
            except (PiccoloError, OSError) as error:
                reasons.append(f"volume {volume}: {error}")
        state = os.statvfs(self._module.paths.state)
        if promised and (warning := plan.overcommitted(promised, stored, state.f_bavail * state.f_frsize)):
            reasons.append(warning)
        return (Level.WARN, "; ".join(reasons)) if reasons else (Level.OK, "")

    def _tell(self, volume: VolumeId, state: State, reason: str) -> None:
        self._module.publish(VolumeStateChanged(app=volume.app, volume=volume.volume, attached=state.value, reason=reason))


def _require_tools() -> None:
    if missing := gocryptfs.why_not():
        raise Unavailable(f"volumes cannot be encrypted: {missing}")
