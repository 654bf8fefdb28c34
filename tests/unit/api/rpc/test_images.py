"""Images go from who has one to who lacks it: whole or not at all, to members alone, and nothing of them is left lying about."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from piccolod.errors import Conflict, NotFound, PiccoloError, StoreFull, Unavailable
from piccolod.pki.identity import Role
from piccolod.protocol.apps import AddImage, ImageDocument, ImageDocuments, ListImages
from piccolod.protocol.base import Nothing
from piccolod.protocol.images import BringImage, SaveImage
from services.api.rpc import app
from tests.unit.api.node import Node
from tests.unit.api.rpc.cluster import Cluster, formed
from tests.unit.api.rpc.test_standings import known
from tests.unit.api.rpc.test_unlocking import Caller

ID, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
ARCHIVE = bytes(range(256)) * 20_000  # more than one part
WANTED = BringImage(name=ID)


class Store:
    """podman's images of one node, as its `apps` serves them."""

    def __init__(self, node: Node, *, has: bool) -> None:
        self.node = node
        self.images = [ID] if has else []
        self.loaded: list[bytes] = []
        self.saved = self.busy = 0
        self.sent = ID  # what an archive turns out to be
        node.modules.replies |= {SaveImage: self.save, AddImage: self.add, ListImages: self.list}

    @property
    def folder(self) -> Path:
        return self.node.module.paths.uploads

    def save(self, request: SaveImage) -> Nothing:
        if request.wanted.name not in self.images:
            raise NotFound("it is not on this node")
        self.saved += 1
        self.busy = self.node.module.busy_with
        self.wanted = request.wanted
        file = Path(request.file)
        assert (file.parent, file.read_bytes()) == (self.folder, b""), "the api has made it"
        file.write_bytes(ARCHIVE)
        return Nothing()

    def add(self, request: AddImage) -> ImageDocuments:
        assert request.kind == "load"
        self.loaded.append(Path(request.file).read_bytes())
        self.images.append(self.sent)
        return self.list(None)

    def list(self, _: Any) -> ImageDocuments:
        images = [ImageDocument(id=each, names=("x:1",), size_bytes=1, created_ms=1, used_by=()) for each in self.images]
        return ImageDocuments(images=tuple(images))


@pytest.fixture
def three() -> Iterator[Cluster]:
    with formed("n1", "n2", "n3") as cluster:
        for name in cluster.nodes:
            known(cluster, *cluster.nodes, to=name)
        yield cluster


def stores(cluster: Cluster, *having: str) -> dict[str, Store]:
    return {name: Store(node, has=name in having) for name, node in cluster.nodes.items()}


def nothing_is_left(*all_stores: Store) -> None:
    assert [list(each.folder.iterdir()) for each in all_stores] == [[]] * len(all_stores)


def refused(node: Node, kind: type[PiccoloError]) -> str:
    with pytest.raises(kind) as raised:
        node.command(WANTED)
    return raised.value.detail


def test_who_lacks_an_image_gets_the_very_archive_from_whoever_has_it(three: Cluster) -> None:
    have = stores(three, "n3")
    have["n1"].images.append(OTHER)
    three["n1"].command(WANTED)
    assert have["n1"].loaded == [ARCHIVE]
    assert (have["n3"].saved, have["n3"].busy) == (1, 1)
    assert have["n3"].wanted.known == ("x:1",), "what its names mean there stays so"
    assert 0 < have["n3"].wanted.room_bytes <= 8 * 2**30
    nothing_is_left(*have.values())


def test_what_several_apps_need_is_sent_once(three: Cluster) -> None:
    have, n1 = stores(three, "n2", "n3"), three["n1"]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(n1.command, [WANTED] * 3))
    assert have["n1"].loaded == [ARCHIVE]
    nothing_is_left(*have.values())


def test_what_cannot_be_loaded_here_is_not_fetched_from_the_next_node(three: Cluster) -> None:
    have = stores(three, "n2", "n3")

    def full(request: AddImage) -> ImageDocuments:
        raise StoreFull("no space left on device")

    three["n1"].modules.replies[AddImage] = full
    assert "no space left" in refused(three["n1"], StoreFull)
    assert have["n2"].saved + have["n3"].saved == 1
    nothing_is_left(*have.values())


def test_another_image_than_the_one_that_was_asked_for_is_no_success(three: Cluster) -> None:
    have = stores(three, "n2", "n3")
    have["n1"].sent = OTHER
    detail = refused(three["n1"], Unavailable)
    assert "n2 sent another image" in detail and "n3 sent another image" in detail


def test_a_node_without_others_says_so(three: Cluster) -> None:
    known(three, "n1")
    assert "no other node is known" in refused(three["n1"], Unavailable)


def test_an_image_that_nobody_has_is_not_found(three: Cluster) -> None:
    have = stores(three)
    assert "no other node has image" in refused(three["n1"], NotFound)
    nothing_is_left(*have.values())


def test_whoever_could_not_be_asked_is_named_with_the_reason(three: Cluster) -> None:
    stores(three)
    three["n2"].modules.locked = True
    detail = refused(three["n1"], Unavailable)
    assert "n2: n2 is locked" in detail and "n3" not in detail


def test_an_archive_that_ends_early_is_not_loaded_and_another_node_is_asked(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    have, begin, cut = stores(three, "n2", "n3"), app._begin, []

    async def announce(send: Any, status: int, size_bytes: int, headers: dict[str, str]) -> None:
        if size_bytes == len(ARCHIVE) and not cut:
            cut.append(True)
            size_bytes += 1
        await begin(send, status, size_bytes, headers)

    monkeypatch.setattr(app, "_begin", announce)
    three["n1"].command(WANTED)
    assert (cut, have["n1"].loaded) == ([True], [ARCHIVE])
    assert (have["n2"].saved, have["n3"].saved) == (1, 1)
    nothing_is_left(*have.values())


def test_a_refusal_of_the_other_node_is_told(three: Cluster) -> None:
    have = stores(three, "n2")

    def other(request: SaveImage) -> Nothing:
        raise Conflict(f"image {request.wanted.name} is for arm64")

    three["n2"].modules.replies[SaveImage] = other
    assert "n2: image" in (detail := refused(three["n1"], Unavailable)) and "is for arm64" in detail
    nothing_is_left(*have.values())


def test_pushed_to_all_it_goes_to_those_that_lack_it(three: Cluster) -> None:
    have = stores(three, "n1", "n2")
    with three["n1"].unix() as client:
        handed = client.post(f"/images/{ID.removeprefix('sha256:')}/push").json()
    assert sorted(handed, key=lambda each: each["node"]) == [
        {"node": "n2", "had": True, "error": ""}, {"node": "n3", "had": False, "error": ""},
    ]  # fmt: skip
    assert (have["n2"].loaded, have["n3"].loaded) == ([], [ARCHIVE])
    nothing_is_left(*have.values())


def test_pushed_to_a_node_that_cannot_be_reached_it_is_said_which(three: Cluster) -> None:
    stores(three, "n1")
    three["n3"].modules.locked = True
    with three["n1"].unix() as client:
        handed = {each["node"]: each["error"] for each in client.post(f"/images/{ID}/push").json()}
    assert handed == {"n2": "", "n3": "n3 is locked"}


def test_what_a_node_does_not_have_it_does_not_push(three: Cluster) -> None:
    stores(three)
    with three["n1"].unix() as client:
        assert client.post(f"/images/{ID}/push").status_code == 404


def test_a_witness_gets_no_image(three: Cluster, tmp_path: Path) -> None:
    have = stores(three, "n1")
    for path in ("/image", "/image/take"):
        status, _ = Caller(three, tmp_path, role=Role.WITNESS).post(b"", path)
        assert status == 403
    assert have["n1"].saved == 0
