from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from piccolod.errors import DeadlineExceeded, Forbidden, Locked, PiccoloError
from piccolod.module import Module
from piccolod.protocol.base import Nothing
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.joining import CheckNode
from services.router.tunnel import vetting
from services.router.tunnel.security import Peer
from services.router.tunnel.vetting import Vetting

from ..harness import on_loop, until

N1 = Peer("n1", "k1")


class Store:
    """A persistence that answers as `error` says, and a module that asks it."""

    def __init__(self, error: PiccoloError | None = None) -> None:
        self.error = error
        self.asked: list[CheckNode] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, request: CheckNode, **_more: Any) -> Nothing:
        self.asked.append(request)
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return Nothing()

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        self._tasks.add(asyncio.create_task(work, name=name))


def knows(folder: Path, **roles: str) -> None:
    members = {
        name: KnownMember(address="10.77.0.1", client_url="", rpc="10.77.0.1:7444", role=role) for name, role in roles.items()
    }
    (folder / "members.json").write_bytes(msgspec.json.encode(members))


async def verdict(vetting: Vetting, peer: Peer = N1) -> str:
    said: list[str] = []
    vetting.vet(peer, said.append)
    await until(lambda: said, "the verdict")
    return said[0]


@on_loop
async def test_one_question_answers_for_all_that_come_meanwhile_and_soon_after(tmp_path: Path) -> None:
    store, said = Store(), list[str]()
    store.answers.clear()
    vetting = Vetting(cast(Module, store), tmp_path)
    for _ in range(5):
        vetting.vet(N1, said.append)
    await until(lambda: store.asked, "it is asked")
    store.answers.set()
    await until(lambda: len(said) == 5, "all hear it")
    vetting.vet(N1, said.append)
    assert said == [""] * 6
    assert store.asked == [CheckNode(node="n1", key="k1")]


@on_loop
async def test_what_was_heard_is_asked_again_after_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "REMEMBERED_S", 0.05)
    store = Store()
    vetter = Vetting(cast(Module, store), tmp_path)
    assert await verdict(vetter) == ""
    store.error = Forbidden("n1 is no node of this cluster any more")
    await asyncio.sleep(0.06)
    assert await verdict(vetter) == "n1 is no node of this cluster any more"


@on_loop
async def test_another_key_under_the_same_name_is_another_question(tmp_path: Path) -> None:
    store = Store()
    vetter = Vetting(cast(Module, store), tmp_path)
    await verdict(vetter)
    await verdict(vetter, Peer("n1", "k2"))
    assert [request.key for request in store.asked] == ["k1", "k2"]


@pytest.mark.parametrize("error", [Locked("the store is locked"), DeadlineExceeded("no answer")])
def test_while_the_store_cannot_be_asked_the_members_that_were_known_last_come_in(tmp_path: Path, error: PiccoloError) -> None:
    @on_loop
    async def run() -> None:
        knows(tmp_path, n1="member", n3="witness")
        vetter = Vetting(cast(Module, Store(error)), tmp_path)
        assert await verdict(vetter) == ""
        assert "n2 is not known here" in await verdict(vetter, Peer("n2", "k2"))
        assert "n3 is not known here" in await verdict(vetter, Peer("n3", "k3"))

    run()


@on_loop
async def test_who_is_believed_waits_for_the_list_once_and_not_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "_BELIEVED_S", 0.05)
    knows(tmp_path, n1="member")
    store, said = Store(DeadlineExceeded("no answer")), list[str]()
    vetter = Vetting(cast(Module, store), tmp_path)
    assert await verdict(vetter) == ""
    store.answers.clear()
    await asyncio.sleep(0.06)
    vetter.vet(N1, said.append)
    assert said == [""]
    await until(lambda: len(store.asked) == 2, "it is asked again all the same")
    store.error = Forbidden("n1 is no node of this cluster any more")
    store.answers.set()
    await until(lambda: vetter._known[N1].reason, "the list has spoken")
    assert await verdict(vetter) == "n1 is no node of this cluster any more"


@on_loop
async def test_without_a_list_of_members_nobody_comes_in(tmp_path: Path) -> None:
    vetter = Vetting(cast(Module, Store(Locked("the store is locked"))), tmp_path)
    assert "the store is locked" in await verdict(vetter)
    (tmp_path / "members.json").write_text("{")
    assert "not known here" in await verdict(vetter, Peer("n2", "k2"))


@on_loop
async def test_one_that_was_removed_is_not_believed_though_it_was_known(tmp_path: Path) -> None:
    knows(tmp_path, n1="member")
    vetter = Vetting(cast(Module, Store(Forbidden("n1 is no node of this cluster any more"))), tmp_path)
    assert await verdict(vetter) == "n1 is no node of this cluster any more"
