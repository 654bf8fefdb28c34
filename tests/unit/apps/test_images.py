"""Where the image of a version comes from: this node, another node of the cluster, or where the manifest says. In this order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from piccolod.errors import Conflict, Failed, NotFound, StoreFull, Unavailable
from piccolod.protocol.images import ARCHITECTURE, ImageWanted
from services.apps.desired import Version
from services.apps.images import Bring, Images
from services.apps.podman import PodmanError
from services.apps.situation import ImageIs
from services.apps.uploads import Archive
from services.apps.validate import validate
from tests.unit.apps.situations import TEXT, manifest

ID, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
NEVER = "pull: never\n"


class Store:
    """podman, and the other nodes. `registry`, `nearby`: what each has by name."""

    def __init__(self) -> None:
        self.here: dict[str, str] = {}
        self.registry: dict[str, str] = {}
        self.nearby: dict[str, str] = {}
        self.asked: list[str] = []
        self.broken: OSError | None = None

    async def image(self, name: str) -> dict[str, Any] | None:
        found = self.here.get(name) or next((each for each in self.here.values() if each == name), None)
        names = [name for name, each in self.here.items() if each == found]
        return (
            {"Id": found.removeprefix("sha256:"), "RepoTags": names, "Architecture": ARCHITECTURE, "Size": 10}
            if found
            else None
        )

    async def pull(self, name: str, *, always: bool) -> str:
        self.asked.append("registry")
        if name not in self.registry:
            raise PodmanError("the registry does not know it")
        self.here[name] = self.registry[name]
        return self.registry[name]

    async def bring(self, name: str) -> None:
        self.asked.append("nearby")
        found = self.nearby.get(name)
        if found is None:
            raise NotFound("no other node has it")
        self.here["b"] = found

    async def save(self, names: list[str], archive: Archive) -> None:
        if self.broken is not None:
            raise self.broken
        if (failed := archive.fill(iter([" ".join(names).encode(), b"!"]))) is not None:
            raise failed


def fetched(store: Store, folder: Path, version: Version, *, bring: Bring | None = None) -> tuple[ImageIs, str, str]:
    """What is said of the image once it was fetched, by a node that lacks it: its state, its id, and why not."""

    async def main() -> tuple[ImageIs, str, str]:
        ended = asyncio.Event()
        images = Images(store, folder, folder, list, lambda app: ended.set(), bring)  # type: ignore[arg-type]
        if (await images.look(version)).status is ImageIs.ABSENT:
            images.fetch(version)
            await asyncio.wait_for(ended.wait(), 5)
        seen = await images.look(version)
        return seen.status, seen.id, seen.reason

    return asyncio.run(main())


def test_a_member_takes_what_another_node_has_and_asks_no_registry(tmp_path: Path) -> None:
    store = Store()
    store.nearby, store.registry = {"b": ID}, {"b": OTHER}
    assert fetched(store, tmp_path, Version(manifest=manifest()), bring=store.bring) == (ImageIs.PRESENT, ID, "")
    assert store.asked == ["nearby"]


def test_an_image_that_is_named_by_its_id_is_asked_for_by_that(tmp_path: Path) -> None:
    store = Store()
    store.nearby = {"b": OTHER, ID: ID}
    version = Version(manifest=manifest(), image_id=ID)
    assert fetched(store, tmp_path, version, bring=store.bring) == (ImageIs.PRESENT, ID, "")


@pytest.mark.parametrize("more", ["", NEVER])
def test_pull_never_speaks_of_registries(tmp_path: Path, more: str) -> None:
    store = Store()
    store.registry = {"b": ID}
    status, _, why = fetched(store, tmp_path, Version(manifest=manifest(more)), bring=store.bring)
    assert (status is ImageIs.REFUSED) is bool(more)
    assert store.asked == (["nearby"] if more else ["nearby", "registry"])
    assert not more or "no other node has it, and `pull` is never" in why


def test_pull_always_asks_the_registry_for_a_name_and_another_node_for_an_id(tmp_path: Path) -> None:
    store, always = Store(), manifest("pull: always\n")
    store.nearby, store.registry = {"b": OTHER, ID: ID}, {"b": ID}
    assert fetched(store, tmp_path, Version(manifest=always), bring=store.bring)[1] == ID
    assert store.asked == ["registry"]
    store.here.clear()
    assert fetched(store, tmp_path, Version(manifest=always, image_id=ID), bring=store.bring)[1] == ID
    assert store.asked == ["registry", "nearby"]


def test_pull_never_of_a_digest_asks_no_registry_either(tmp_path: Path) -> None:
    store = Store()
    name = f"b@sha256:{'3' * 64}"
    store.registry = {name: ID}
    never = Version(manifest=validate(TEXT.replace("image: b", f"image: {name}\npull: never")).manifest)
    status, _, why = fetched(store, tmp_path, never, bring=store.bring)
    assert (status, store.asked) == (ImageIs.REFUSED, [])
    assert "not on this node, and `pull` is never" in why


def test_an_archive_that_came_in_vain_is_not_fetched_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [1000.0], []
    monkeypatch.setattr("services.apps.images.clock.now", lambda: now[0])

    async def full(name: str) -> None:
        asked.append(name)
        raise StoreFull("there is no room for it")

    async def main() -> None:
        ended, version = asyncio.Event(), Version(manifest=manifest(NEVER))
        images = Images(Store(), tmp_path, tmp_path, list, lambda app: ended.set(), full)  # type: ignore[arg-type]
        while now[0] < 1400.0:
            ended.clear()
            images.fetch(version)
            await asyncio.wait_for(ended.wait(), 5)
            now[0] = images.again_at(version)

    asyncio.run(main())
    assert len(asked) == 5, "at once, and after 5, 15, 60 and 300 s"


def test_what_nobody_has_is_refused_with_what_each_said(tmp_path: Path) -> None:
    store = Store()
    status, _, why = fetched(store, tmp_path, Version(manifest=manifest()), bring=store.bring)
    assert status is ImageIs.REFUSED
    assert "the registry does not know it; from another node: no other node has it" in why


def test_another_image_of_the_same_name_is_not_taken_for_the_one_that_runs(tmp_path: Path) -> None:
    store = Store()
    store.registry = {"b": OTHER}

    async def cut(name: str) -> None:
        raise Unavailable("n2 cannot be reached")

    status, _, why = fetched(store, tmp_path, Version(manifest=manifest(), image_id=ID), bring=cut)
    assert status is ImageIs.REFUSED
    assert "another image here" in why and "n2 cannot be reached" in why


def test_a_node_alone_asks_the_registry(tmp_path: Path) -> None:
    store = Store()
    store.registry = {"b": ID}
    assert fetched(store, tmp_path, Version(manifest=manifest()))[1] == ID
    assert fetched(Store(), tmp_path, Version(manifest=manifest(NEVER)))[0] is ImageIs.REFUSED


def test_a_digest_of_a_registry_is_not_asked_for_nearby(tmp_path: Path) -> None:
    store = Store()
    name = f"b@sha256:{'3' * 64}"
    store.registry = {name: ID}
    by_digest = Version(manifest=validate(TEXT.replace("image: b", f"image: {name}")).manifest)
    assert fetched(store, tmp_path, by_digest, bring=store.bring)[1] == ID
    assert store.asked == ["registry"]


def test_the_others_are_asked_again_soon_and_a_registry_less_and_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now, version = Store(), [1000.0], Version(manifest=manifest())
    monkeypatch.setattr("services.apps.images.clock.now", lambda: now[0])

    async def main() -> None:
        ended = asyncio.Event()
        images = Images(store, tmp_path, tmp_path, list, lambda app: ended.set(), store.bring)  # type: ignore[arg-type]
        while now[0] < 1400.0:
            assert (await images.look(version)).status is ImageIs.ABSENT
            ended.clear()
            images.fetch(version)
            await asyncio.wait_for(ended.wait(), 5)
            now[0] = images.again_at(version)
        assert (await images.look(version)).status is ImageIs.ABSENT

    asyncio.run(main())
    assert store.asked.count("nearby") > 400 / 15
    assert store.asked.count("registry") == 5, "at once, and after 5, 15, 60 and 300 s"


def save(store: Store, folder: Path, name: str = "b", **more: Any) -> str:
    """What the archive holds."""
    wanted = ImageWanted(**{"name": name, "architecture": ARCHITECTURE, "room_bytes": 10} | more)
    images = Images(store, folder, folder, list, lambda app: None)  # type: ignore[arg-type]
    file = folder / "x.upload"
    file.write_bytes(b"")
    asyncio.run(images.save(wanted, Archive(file, folder)))
    return file.read_text()


def test_an_image_is_saved_with_its_names_that_mean_nothing_where_it_goes(tmp_path: Path) -> None:
    store = Store()
    store.here = {"b": ID, "c:2": ID, "other": OTHER}
    assert save(store, tmp_path, ID) == "b c:2!"
    assert save(store, tmp_path, ID, known=("c:2", "other")) == "b!"
    assert save(store, tmp_path, ID, known=("b", "c:2")) == f"{ID.removeprefix('sha256:')}!"


def test_an_image_that_cannot_run_there_or_has_no_room_is_not_saved(tmp_path: Path) -> None:
    store = Store()
    store.here = {"b": ID}
    with pytest.raises(Conflict, match=f"is for {ARCHITECTURE}"):
        save(store, tmp_path, architecture="riscv64")
    with pytest.raises(NotFound):
        save(store, tmp_path, "c")
    with pytest.raises(StoreFull, match=r"are too much for the 9 ?B that are free there"):
        save(store, tmp_path, room_bytes=9)


def test_a_disk_that_is_nearly_full_takes_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    store.here = {"b": ID}
    monkeypatch.setattr("services.apps.uploads.KEEP_FREE_BYTES", 2**60)
    with pytest.raises(StoreFull, match="no room here for an archive of b"):
        save(store, tmp_path)


def test_a_disk_that_breaks_is_not_said_to_be_full(tmp_path: Path) -> None:
    store = Store()
    store.here, store.broken = {"b": ID}, OSError(5, "Input/output error")
    with pytest.raises(Failed, match="could be written: Input/output error"):
        save(store, tmp_path)


def test_an_archive_goes_nowhere_but_into_the_file_that_the_api_made(tmp_path: Path) -> None:
    (folder := tmp_path / "uploads").mkdir()
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    (folder / "link").symlink_to(outside)
    for file in (outside, folder / "link", folder / "gone", folder / "../outside", folder):
        assert Archive(file, folder).fill(iter([b"x"])) is not None
    assert outside.read_text() == "as it was"
    (folder / "file").touch()
    archive = Archive(folder / "file", folder)
    archive.give_up()
    assert archive.fill(iter([b"x"])) is not None
    assert (folder / "file").read_bytes() == b""
