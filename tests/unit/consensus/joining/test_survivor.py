"""The order to recover, with etcd and the log played: what is looked at last, and what holds however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod import clock, config, etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.errors import Busy, Conflict, Failed
from piccolod.leadership.timing import POLL_S, Timing, founded
from piccolod.module import Caller
from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.log import ExportLog
from piccolod.protocol.recovery import GetLogEnd, GetStoreView, LogEnd, Recover, Store, StoreView, TakeEntries
from services.consensus import members_file
from services.consensus.joining import survivor
from services.consensus.joining.survivor import Survivor
from services.consensus.refusals import Refusals

CALLER: Any = Caller
TIMING: Timing = founded("fast", 0.1)
PATIENCE_S = 2 * (POLL_S + TIMING.rpc_s)
SETTINGS = etcd_conf.Settings("n1", "http://10.0.0.1:2380", "http://10.0.0.1:2379", "token")
NEVER = float("-inf")


class Etcd:
    """This node's own member, which has the log up to `rev`."""

    rev = 10
    unread = False

    def __init__(self, *_: object) -> None: ...

    async def aclose(self) -> None: ...

    async def head_rev(self) -> int:
        return self.rev

    async def epochs(self, seen: Any) -> Any:
        return dict(seen)

    async def keyset(self) -> bytes:
        return b""

    async def entries(self, after: int) -> Any:
        return
        yield


class Home:
    """A member whose etcd has been silent for long."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.paths = Paths(state=folder / "state", run=folder / "run")
        self.paths.cluster.mkdir(parents=True)
        etcd_conf.write(SETTINGS, self.paths.etcd_conf)
        members_file.write(self.paths, {name: KnownMember(address="", client_url="", rpc="") for name in ("n1", "n2")})
        state = SimpleNamespace(
            restored=False, gen=7, view=SimpleNamespace(epochs={}), config=SimpleNamespace(timing=TIMING)
        )  # fmt: skip
        self.driver: Any = SimpleNamespace(
            state=state, began_at=clock.now() - 1000, heard_at=clock.now() - 500, store=SimpleNamespace(prefix="")
        )  # fmt: skip
        self.did: list[str] = []
        self.fails = ""
        self.restarted = asyncio.Event()
        self.plans: Callable[[], None] = lambda: None
        self.enter: Callable[[], None] = lambda: None  # before each of what it does
        self.looked: Callable[[], None] = lambda: None  # after it was seen that no container lives here
        home = self

        class Recovering:
            def __init__(self, *_: object) -> None: ...

            async def run(self, plan: Any) -> None:
                home.act("recover")

        patch.setattr(survivor, "OwnMember", Etcd)
        patch.setattr(survivor, "Recovering", Recovering)
        self.module: Any = SimpleNamespace(
            paths=self.paths, config=config.parse('[node]\nname = "n1"'), call=self.call,
            spawn=lambda work, name: asyncio.get_running_loop().create_task(work),
        )  # fmt: skip
        leaser: Any = SimpleNamespace(driver=self.driver, abandon=self.abandon)
        place: Any = None  # nobody is asked where he is
        refusals = Refusals(self.driver, "n1", place)
        self.survivor = Survivor(
            self.module, leaser, Mode(cluster="c", node="n1", since_ms=1), refusals, self.check, self.restart
        )

    def just_begun(self) -> None:
        self.driver.began_at, self.driver.heard_at = clock.now(), NEVER

    async def order(self, *, force: bool = True) -> Any:
        return await self.survivor._recover(Recover(heard=(), force=force), CALLER)

    async def view(self) -> StoreView:
        return await self.survivor._store_view(GetStoreView(), CALLER)

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        self.plans()
        if isinstance(request, GetLogEnd | TakeEntries):
            return LogEnd(rev=10, digest=b"d", gen=7, epoch=3, at_ms=1, locked=False)
        assert isinstance(request, ExportLog)
        return None

    def act(self, what: str) -> None:
        self.enter()
        self.did.append(what)
        if self.fails == what:
            raise Failed(f"cannot {what}")

    async def check(self) -> None:
        self.looked()

    async def abandon(self) -> None:
        self.act("abandon")

    async def restart(self) -> None:
        self.restarted.set()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, monkeypatch)


def test_an_etcd_that_is_silent_for_good_is_recovered_from(home: Home) -> None:
    async def main() -> None:
        assert (await home.view()).store is Store.SILENT
        assert (await home.order()).done
        assert home.did == ["abandon", "recover"]
        await asyncio.wait_for(home.restarted.wait(), 5)

    asyncio.run(main())


def test_a_configuration_that_names_an_owners_etcd_by_now_is_refused_before_anything_is_given_up(home: Home) -> None:
    """The new etcd has the addresses of the configuration, and there are none."""

    async def main() -> None:
        home.module.config = config.parse(
            '[node]\nname = "n1"\n[etcd]\nmode = "external"\nendpoints = ["http://127.0.0.1:2379"]'
        )
        with pytest.raises(Conflict, match="names one that its owner keeps"):
            await home.order()
        assert home.did == []

    asyncio.run(main())


def test_one_that_answers_again_in_the_last_moment_is_left_alone(home: Home) -> None:
    def answers() -> None:
        home.driver.heard_at = clock.now()

    async def main() -> None:
        home.looked = answers
        with pytest.raises(Conflict, match="nothing is to be recovered"):
            await home.order()
        assert home.did == [] and not home.restarted.is_set(), "this life goes on"

    asyncio.run(main())


@pytest.mark.parametrize("force", [False, True])
def test_a_life_that_has_just_begun_takes_no_silence_for_a_loss(home: Home, force: bool) -> None:
    async def main() -> None:
        home.just_begun()
        assert (await home.view()).store is Store.UNKNOWN
        with pytest.raises(Busy, match="n1 has just started"):
            await home.order(force=force)
        assert home.did == []
        home.driver.began_at -= PATIENCE_S + 0.1
        assert (await home.view()).store is Store.SILENT
        assert (await home.order(force=force)).done is force

    asyncio.run(main())


def test_a_life_that_has_just_begun_and_has_heard_knows_that_etcd_answers(home: Home) -> None:
    async def main() -> None:
        home.just_begun()
        home.driver.heard_at = clock.now()
        assert (await home.view()).store is Store.ANSWERS

    asyncio.run(main())


def test_before_it_begins_to_ask_nothing_is_known(home: Home) -> None:
    async def main() -> None:
        home.driver.began_at, home.driver.heard_at = clock.FOREVER, NEVER
        assert (await home.view()).store is Store.UNKNOWN

    asyncio.run(main())


@pytest.mark.parametrize("fails", ["abandon", "recover"])
def test_whatever_fails_once_it_leads_nothing_its_next_life_begins(home: Home, fails: str) -> None:
    async def main() -> None:
        home.fails = fails
        with pytest.raises(Failed, match=f"cannot {fails}"):
            await home.order()
        await asyncio.wait_for(home.restarted.wait(), 5)

    asyncio.run(main())


def test_it_is_being_recovered_from_the_moment_on_at_which_it_leads_nothing(home: Home) -> None:
    planned: list[bool] = []
    done: list[bool] = []

    async def main() -> None:
        home.plans = lambda: planned.append(home.survivor.is_recovering)
        home.enter = lambda: done.append(home.survivor.is_recovering)
        assert not (await home.order(force=False)).done
        await home.order()
        assert set(planned) == {False} and done == [True, True]
        assert (await home.view()).store is Store.RECOVERING
        with pytest.raises(Busy, match="being recovered here already"):
            await home.order(force=False)

    asyncio.run(main())


def test_an_etcd_of_its_own_that_does_not_answer_is_named_as_lost(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(Etcd, "unread", True)
        assert (await home.view()).unread
        assert "own etcd has after rev 10: it could not be read" in (await home.order(force=False)).lost[0]

    asyncio.run(main())


def test_what_its_own_etcd_has_beyond_what_was_taken_is_named_as_lost(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(Etcd, "rev", 12)
        assert "own etcd has from rev 11 to 12" in (await home.order(force=False)).lost[0]

    asyncio.run(main())
