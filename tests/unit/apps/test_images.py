"""Where the image of a version comes from: this node, another node of the cluster, or where the manifest says. In this order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from piccolod.errors import Conflict, NotFound, Unavailable
from piccolod.protocol.images import ARCHITECTURE, ImageWanted
from services.apps.desired import Version
from services.apps.images import Bring, Images
from services.apps.podman import PodmanError
from services.apps.situation import ImageIs
from tests.unit.apps.situations import manifest

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
        return {"Id": found.removeprefix("sha256:"), "RepoTags": names, "Architecture": ARCHITECTURE} if found else None

    async def pull(self, name: str, *, always: bool) -> str:
        self.asked.append("registry")
        if name not in self.registry:
            raise PodmanError("the registry does not know it")
        self.here[name] = self.registry[name]
        return self.registry[name]

    async def bring(self, wanted: ImageWanted) -> None:
        self.asked.append("nearby")
        found = self.nearby.get(wanted.name)
        if found is None:
            raise NotFound("no other node has it")
        self.here["b"] = found

    async def save(self, names: list[str], archive: BinaryIO) -> None:
        archive.write(" ".join(names).encode())
        if self.broken is not None:
            raise self.broken


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


def test_what_nobody_has_is_refused_with_what_each_said(tmp_path: Path) -> None:
    store = Store()
    status, _, why = fetched(store, tmp_path, Version(manifest=manifest()), bring=store.bring)
    assert status is ImageIs.REFUSED
    assert "the registry does not know it; from another node: no other node has it" in why


def test_another_image_of_the_same_name_is_not_taken_for_the_one_that_runs(tmp_path: Path) -> None:
    store = Store()
    store.registry = {"b": OTHER}

    async def cut(wanted: ImageWanted) -> None:
        raise Unavailable("n2 cannot be reached")

    status, _, why = fetched(store, tmp_path, Version(manifest=manifest(), image_id=ID), bring=cut)
    assert status is ImageIs.REFUSED
    assert "another image here" in why and "n2 cannot be reached" in why


def test_a_node_alone_asks_the_registry(tmp_path: Path) -> None:
    store = Store()
    store.registry = {"b": ID}
    assert fetched(store, tmp_path, Version(manifest=manifest()))[1] == ID
    assert fetched(Store(), tmp_path, Version(manifest=manifest(NEVER)))[0] is ImageIs.REFUSED


def save(store: Store, folder: Path, wanted: ImageWanted) -> Path:
    images = Images(store, folder, folder, list, lambda app: None)  # type: ignore[arg-type]
    return asyncio.run(images.save(wanted, folder))


def test_an_image_is_saved_with_all_its_names_for_whoever_asks_by_its_id(tmp_path: Path) -> None:
    store = Store()
    store.here = {"b": ID, "c:2": ID, "other": OTHER}
    file = save(store, tmp_path, ImageWanted(name=ID, architecture=ARCHITECTURE))
    assert (file.parent, file.read_text(), file.stat().st_mode & 0o777) == (tmp_path, "b c:2", 0o600)


def test_an_image_that_cannot_run_there_is_not_saved(tmp_path: Path) -> None:
    store = Store()
    store.here = {"b": ID}
    with pytest.raises(Conflict, match=f"is for {ARCHITECTURE}"):
        save(store, tmp_path, ImageWanted(name="b", architecture="riscv64"))
    with pytest.raises(NotFound):
        save(store, tmp_path, ImageWanted(name="c", architecture=ARCHITECTURE))


def test_an_archive_that_the_disk_does_not_take_leaves_nothing(tmp_path: Path) -> None:
    store = Store()
    store.here, store.broken = {"b": ID}, OSError(28, "No space left on device")
    with pytest.raises(Exception, match="no room for an archive of b: No space left"):
        save(store, tmp_path, ImageWanted(name="b", architecture=ARCHITECTURE))
    assert list(tmp_path.iterdir()) == []
