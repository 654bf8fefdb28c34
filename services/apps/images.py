"""Images: what a version's name means on this node, and getting it there in the background."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import subprocess
import tarfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from piccolod import clock, podman_conf
from piccolod.errors import Conflict, Failed, Invalid, NotFound, PiccoloError, StoreFull, Unavailable
from piccolod.protocol.images import ImageWanted
from piccolod.units import format_size
from services.apps.desired import Version
from services.apps.discreet import discreet
from services.apps.manifest import Manifest, Pull
from services.apps.podman import Podman, PodmanError
from services.apps.situation import Image, ImageIs
from services.apps.uploads import Archive

Bring = Callable[[str], Awaitable[None]]  # by name or id

# A registry that is down is asked again after these, in turn.
_AGAIN_S: Final = (5.0, 15.0, 60.0, 300.0)
# The other nodes at least as often: somebody loads it on one of them, and it costs each a look into its podman.
_NEARBY_AGAIN_S: Final = 15.0
_ANOTHER: Final = "its name means another image here than where it runs; `piccoloctl images load` brings that one"
_LOAD_HINT: Final = "`piccoloctl images load` brings it"
_NO_ROOM: Final = "no space left"  # strerror(ENOSPC), in podman's words: not the fault of the file


def reference(manifest: Manifest) -> str:
    """The name under which the image is looked for: the manifest's, or one that follows from the Containerfile."""
    if manifest.build is None:
        return manifest.image or ""
    digest = hashlib.sha256(manifest.build.containerfile.encode()).hexdigest()[:12]
    return f"localhost/piccolo-build/{manifest.name}:{digest}"


def with_prefix(image_id: str) -> str:
    """podman says ids with and without `sha256:`; documents say them with."""
    return f"sha256:{image_id.removeprefix('sha256:')}"


class Images:
    """`changed(app)` is called when a fetch ends."""

    def __init__(
        self,
        podman: Podman,
        store: Path,
        scratch: Path,
        contexts: Callable[[], list[Path]],
        changed: Callable[[str], None],
        bring: Bring | None = None,
    ) -> None:
        """`store` is where podman keeps them; `contexts()` are what it builds from, or has left behind.

        `bring` loads here what another node has, on a member of a cluster.
        """
        self._podman, self._store, self._scratch, self._contexts, self._changed = podman, store, scratch, contexts, changed
        self._bring = bring
        self._builds = 0
        self._fetches: dict[str, asyncio.Task[str]] = {}
        self._refused: dict[str, tuple[float, int, str]] = {}  # key -> (again at, tries, why)
        self._soon: set[str] = set()  # refused by what may be otherwise in a moment
        self._elsewhere: dict[str, tuple[float, int, str]] = {}  # the same, of what is not another node

    async def find(self, manifest: Manifest) -> str:
        """The id of what the manifest names, empty when it is not on this node."""
        found = await self._podman.image(reference(manifest))
        return with_prefix(str(found["Id"])) if found is not None else ""

    async def look(self, version: Version) -> Image:
        """Is what the version names here?"""
        manifest = version.manifest
        key = _key(version)
        if (fetch := self._fetches.get(key)) is not None and not fetch.done():
            return Image(ImageIs.FETCHING, reason=f"{self._verb(manifest)} {reference(manifest)}")
        if version.image_id:
            if await self._podman.image(version.image_id) is not None:
                return Image(ImageIs.PRESENT, version.image_id)
        elif self._may_be_local(version, key) and (found := await self.find(manifest)):
            return Image(ImageIs.PRESENT, found)
        if manifest.pull is Pull.NEVER and manifest.build is None and self._bring is None:
            return Image(ImageIs.REFUSED, reason=f"image {reference(manifest)} is not on this node, and `pull` is never")
        again_at, _, why = self._refused.get(key, (0.0, 0, ""))
        return Image(ImageIs.REFUSED, reason=why) if clock.now() < again_at else Image(ImageIs.ABSENT)

    def again_at(self, version: Version) -> float:
        """When a refused fetch may be tried again."""
        return self._refused.get(_key(version), (0.0, 0, ""))[0]

    def fetch(self, version: Version) -> None:
        """Begins to pull or build; `look` says how it goes."""
        key = _key(version)
        if key not in self._fetches or self._fetches[key].done():
            task = asyncio.create_task(self._fetch(version), name=f"fetch {reference(version.manifest)}")
            self._fetches[key] = task
            task.add_done_callback(lambda done: self._ended(key, version, done))

    def _verb(self, manifest: Manifest) -> str:
        return "fetches" if self._bring is not None else "pulls" if manifest.build is None else "builds"

    def _may_be_local(self, version: Version, key: str) -> bool:
        """`pull: always` asks the registry first, once for each version."""
        if version.manifest.pull is not Pull.ALWAYS or version.manifest.build is not None:
            return True
        done = self._fetches.get(key)
        return done is not None and done.done() and not done.cancelled() and done.exception() is None

    async def _fetch(self, version: Version) -> str:
        """From another node, which is near and has the very image; what none has from where the manifest says."""
        manifest, name = version.manifest, version.image_id or reference(version.manifest)
        # An archive does not say which digest a registry calls an image by.
        nearby = bool(version.image_id) or (self._may_be_local(version, _key(version)) and "@" not in name)
        if self._bring is None or not nearby:
            if manifest.pull is Pull.NEVER and manifest.build is None:
                raise Failed(f"{name} is not on this node, and `pull` is never", hint=_LOAD_HINT)
            got = await self._got(manifest)
        else:
            try:
                return await self._brought(self._bring, name)  # which is on the disk: it came by `add`
            except PiccoloError as error:
                if isinstance(error, (NotFound, Unavailable)):  # an ask is cheap, an archive that was in vain is not
                    self._soon.add(_key(version))
                got = await self._got_elsewhere(version, error)
        await self._sync()
        return got

    async def _brought(self, bring: Bring, name: str) -> str:
        await bring(name)
        found = await self._podman.image(name)
        if found is None:
            raise NotFound(f"what another node sent for {name} is another image")
        return with_prefix(str(found["Id"]))

    async def _got_elsewhere(self, version: Version, nearby: PiccoloError) -> str:
        """The other nodes are asked again soon, a registry less and less often."""
        manifest, key = version.manifest, _key(version)
        if manifest.pull is Pull.NEVER and manifest.build is None:
            raise Failed(f"{nearby.detail}, and `pull` is never", hint=nearby.hint)
        again_at, tries, why = self._elsewhere.get(key, (0.0, 0, ""))
        if clock.now() >= again_at:
            try:
                got = await self._got(manifest)
            except PiccoloError as error:
                why = error.detail
            else:
                if not _is_another(version, got):
                    return got
                why = _ANOTHER
            self._elsewhere[key] = (clock.now() + _wait_s(tries), tries + 1, why)
        raise Failed(f"{why}; from another node: {nearby.detail}", hint=nearby.hint)

    async def _got(self, manifest: Manifest) -> str:
        if manifest.build is None:
            return await self._podman.pull(reference(manifest), always=manifest.pull is Pull.ALWAYS)
        context = self._scratch / f"build-{manifest.name}.tar"
        await asyncio.to_thread(_write_context, context, manifest.build.containerfile)
        try:
            return await self._build(context, reference(manifest))
        finally:
            context.unlink(missing_ok=True)

    async def _build(self, context: Path, name: str) -> str:
        self._builds += 1
        try:
            return await self._podman.build(context, name)
        finally:
            self._builds -= 1
            if not self._builds and (left := self._contexts()):
                await asyncio.to_thread(podman_conf.forget_builds, left)

    def _ended(self, key: str, version: Version, done: asyncio.Task[str]) -> None:
        why = _why_not(version, done)
        self._soon, soon = self._soon - {key}, key in self._soon
        if not why:
            self._refused.pop(key, None)
            self._elsewhere.pop(key, None)
        else:
            tries = self._refused.get(key, (0.0, 0, ""))[1]
            wait_s = min(_wait_s(tries), _NEARBY_AGAIN_S) if soon else _wait_s(tries)
            why = discreet(why, version.manifest)
            self._refused[key] = (clock.now() + wait_s, tries + 1, f"image {reference(version.manifest)}: {why}")
        self._changed(version.manifest.name)

    # --- commands

    async def listed(self) -> list[dict[str, Any]]:
        return await self._podman.images()

    async def save(self, wanted: ImageWanted, archive: Archive) -> None:
        """Raises NotFound, Conflict for another architecture, StoreFull."""
        found = await self._podman.image(wanted.name)
        if found is None:
            raise NotFound(f"image {wanted.name} is not on this node")
        if (of := str(found.get("Architecture") or wanted.architecture)) != wanted.architecture:
            raise Conflict(f"image {wanted.name} is for {of}", hint=f"load one that is made for {wanted.architecture}")
        if (size_bytes := int(found.get("Size") or 0)) > wanted.room_bytes:
            room = f"{format_size(size_bytes)} are too much for the {format_size(wanted.room_bytes)} that are free there"
            raise StoreFull(f"image {wanted.name}: {room}", hint="make room below state_dir")
        # A name that means another image there goes on meaning that.
        names = [name for name in found.get("RepoTags") or () if name not in wanted.known]
        try:
            await self._podman.save(names or [str(found["Id"])], archive)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                full = f"there is no room here for an archive of {wanted.name}"
                raise StoreFull(full, hint="make room below state_dir") from error
            raise Failed(f"no archive of {wanted.name} could be written: {error.strerror}") from error

    async def remove(self, image_id: str, names: Sequence[str]) -> None:
        """Raises PodmanError where a container or another image stands on it."""
        for name in names:  # by name until the last is gone: podman refuses the id of what has several
            await self._podman.remove_image(quote(name, safe=""))
        await self._podman.remove_image(image_id.removeprefix("sha256:"))

    async def add(self, kind: str, file: Path, name: str) -> list[str]:
        """Ids of what came in. `kind` is load, import or build. Raises Invalid for a file that is not what it should be."""
        try:
            added = await self._add(kind, file, name)
        except PodmanError as error:
            if _NO_ROOM in error.detail.lower():
                raise
            raise Invalid(f"podman cannot {kind} this file: {error.detail}") from error
        await self._sync()
        return added

    async def _sync(self) -> None:
        """podman syncs no layer: without this a loss of power leaves an image that is listed and has no files.

        Raises Failed.
        """
        done = await asyncio.to_thread(subprocess.run, ["sync", "-f", str(self._store)], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"the disk does not take the image: {done.stderr.strip()}", hint="see the disk")

    async def _add(self, kind: str, file: Path, name: str) -> list[str]:
        if kind == "build":
            return [with_prefix(await self._build(file, name))]
        if kind == "import":
            return [with_prefix(await self._podman.import_rootfs(file, name))]
        ids = []
        for loaded in await self._podman.load(file):
            found = await self._podman.image(loaded)
            if found is None:
                raise NotFound(f"{loaded} was loaded and is not there any more")
            ids.append(with_prefix(str(found["Id"])))
        return ids


def _wait_s(tries: int) -> float:
    return _AGAIN_S[min(tries, len(_AGAIN_S) - 1)]


def _key(version: Version) -> str:
    return f"{version.manifest.name} {reference(version.manifest)} {version.image_id}"


def _write_context(file: Path, containerfile: str) -> None:
    body = containerfile.encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        entry = tarfile.TarInfo("Containerfile")
        entry.size = len(body)
        tar.addfile(entry, io.BytesIO(body))


def _why_not(version: Version, done: asyncio.Task[str]) -> str:
    """Why a fetch did not bring the image of the version; empty when it did."""
    if done.cancelled():
        return ""
    if (error := done.exception()) is not None:
        return error.detail if isinstance(error, PiccoloError) else f"{type(error).__name__}: {error}"
    return _ANOTHER if _is_another(version, done.result()) else ""


def _is_another(version: Version, image_id: str) -> bool:
    return bool(version.image_id) and with_prefix(image_id) != with_prefix(version.image_id)
