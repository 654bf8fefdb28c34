from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from typing import Any

import pytest

from piccolod import clock
from piccolod.errors import Busy, Conflict, StoreFull, StoreUnavailable, TooMany
from piccolod.leadership import page as page_module
from piccolod.leadership.page import PageReader, Term, create
from piccolod.leadership.records import TermState
from piccolod.leadership.roles import Reason
from services.consensus.static_leaser import StaticLeaser
from services.consensus.term_store import set_aside

from .nodes import Node


def test_the_first_campaign_is_the_bootstrap_and_never_runs_out(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        record = await leaser.campaign("kernel", Reason.BOOTSTRAP)
        assert (record.epoch, record.reason, record.node, record.state) == (1, Reason.BOOTSTRAP, "n1", TermState.OPEN)
        assert node.terms() == {"kernel": Term(record.token, 1)}

    node.run(work)
    page = PageReader(node.page).read()
    assert page is not None and page.hard_at == page.soft_at == clock.FOREVER and page.boot_id == clock.boot_id()


def test_campaigning_again_gives_the_same_term(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        assert await leaser.campaign("app:a", Reason.BOOTSTRAP) == await leaser.campaign("app:a", Reason.BOOTSTRAP)

    node.run(work)


def test_each_term_of_each_resource_has_a_token_of_its_own_and_epochs_grow_by_one(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        seen = []
        for n in range(1, 6):
            for resource in ("app:a", "app:b"):
                record = await leaser.campaign(resource, Reason.BOOTSTRAP)
                assert record.epoch == n
                seen.append(record.token)
                await leaser.release(resource, record.token, Reason.RELEASED)
        assert seen == sorted(set(seen))

    node.run(work)
    assert node.terms() == {}


def test_a_closing_term_is_led_again_only_after_its_release(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        record = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        await leaser.close("app:a", record.token)
        await leaser.close("app:a", record.token)
        assert node.terms()["app:a"].closing
        with pytest.raises(Busy, match="being closed"):
            await leaser.campaign("app:a", Reason.BOOTSTRAP)
        await leaser.release("app:a", record.token, Reason.UNHEALTHY)
        assert node.terms() == {}
        again = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        assert (again.epoch, again.reason) == (2, Reason.UNHEALTHY)

    node.run(work)


def test_tokens_of_terms_that_are_over_change_nothing_and_tokens_that_never_were_are_refused(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        old = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        await leaser.release("app:a", old.token, Reason.RELEASED)
        await leaser.release("app:a", old.token, Reason.RELEASED)
        new = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        await leaser.close("app:a", old.token)
        await leaser.release("app:a", old.token, Reason.RELEASED)
        assert node.terms() == {"app:a": Term(new.token, 2)}
        for wrong in (leaser.close("app:a", 999), leaser.close("app:never", 1)):
            with pytest.raises(Conflict):
                await wrong

    node.run(work)


def test_history_says_who_when_and_why_newest_first(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        record = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        await leaser.campaign("app:b", Reason.BOOTSTRAP)
        await leaser.close("app:a", record.token)
        await asyncio.sleep(0.03)
        await leaser.release("app:a", record.token, Reason.LOCKED)
        await leaser.campaign("app:a", Reason.BOOTSTRAP)
        changes = await leaser.history("app:a", 10)
        assert [(c.epoch, c.from_node, c.to_node, c.reason) for c in changes] == [
            (2, "n1", "n1", Reason.LOCKED),
            (1, "n1", "", Reason.LOCKED),
            (1, "", "n1", Reason.BOOTSTRAP),
        ]
        assert 30 <= changes[1].phases["closing"] < 1000
        assert len(await leaser.history(None, 100)) == 4 and len(await leaser.history(None, 2)) == 2

    node.run(work)


def test_a_restarted_consensus_resumes_the_very_terms_and_leaves_the_page_untouched(node: Node) -> None:
    async def begin(leaser: StaticLeaser) -> dict[str, Any]:
        await leaser.campaign("kernel", Reason.BOOTSTRAP)
        closing = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        await leaser.close("app:a", closing.token)
        over = await leaser.campaign("app:b", Reason.BOOTSTRAP)
        await leaser.release("app:b", over.token, Reason.RELEASED)
        return dict(leaser.records())

    async def look(leaser: StaticLeaser) -> dict[str, Any]:
        return dict(leaser.records())

    before = node.run(begin)
    page = PageReader(node.page).read()
    assert node.run(look) == before
    assert PageReader(node.page).read() == page, "not even the sequence number moved"


def test_what_was_closing_stays_so_even_if_only_the_page_knew(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consensus died between the page and the disk."""

    async def work(leaser: StaticLeaser) -> None:
        record = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        monkeypatch.setattr(leaser._opened, "put", lambda _: os._exit(0))
        await leaser.close("app:a", record.token)

    child = os.fork()
    if child == 0:
        node.run(work)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    async def again(leaser: StaticLeaser) -> None:
        assert leaser.records()["app:a"].state is TermState.CLOSING
        with pytest.raises(Busy):
            await leaser.campaign("app:a", Reason.BOOTSTRAP)

    node.run(again)


def test_a_reboot_ends_every_term_and_begins_new_epochs(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def begin(leaser: StaticLeaser) -> int:
        await leaser.campaign("kernel", Reason.BOOTSTRAP)
        closing = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        await leaser.close("app:a", closing.token)
        return closing.token

    token = node.run(begin)
    node.reboot(monkeypatch, "second")

    async def after(leaser: StaticLeaser) -> None:
        assert node.terms() == {}
        assert {record.state for record in leaser.records().values()} == {TermState.RELEASED}
        record = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        assert (record.epoch, record.reason) == (2, Reason.EXPIRED) and record.token > token
        assert [c.reason for c in await leaser.history("app:a", 9)] == [Reason.EXPIRED, Reason.EXPIRED, Reason.BOOTSTRAP]

    node.run(after)


def test_a_lost_disk_under_living_containers_keeps_their_terms_and_never_reuses_a_token(node: Node) -> None:
    async def begin(leaser: StaticLeaser) -> None:
        for name in ("app:a", "app:b", "app:c"):
            await leaser.campaign(name, Reason.BOOTSTRAP)

    node.run(begin)
    terms = node.terms()
    for file in node.file.parent.glob("terms.db*"):
        file.unlink()

    async def after(leaser: StaticLeaser) -> None:
        assert node.terms() == terms
        record = await leaser.campaign("app:d", Reason.BOOTSTRAP)
        assert record.token > max(term.token for term in terms.values())

    node.run(after)
    node.run(begin)
    assert {name: term for name, term in node.terms().items() if name != "app:d"} == terms


def test_a_page_made_anew_gets_its_terms_back(node: Node) -> None:
    async def begin(leaser: StaticLeaser) -> None:
        await leaser.campaign("app:a", Reason.BOOTSTRAP)

    async def look(leaser: StaticLeaser) -> None: ...

    node.run(begin)
    terms = node.terms()
    node.page.unlink()
    create(node.page)
    node.run(look)
    assert node.terms() == terms


@pytest.mark.parametrize("damage", ["garbage", "truncated", "another program's", "a row"])
def test_a_damaged_store_is_set_aside_and_led_terms_go_on_under_a_higher_gen(node: Node, damage: str) -> None:
    async def begin(leaser: StaticLeaser) -> int:
        return (await leaser.campaign("app:a", Reason.BOOTSTRAP)).token

    token = node.run(begin)
    terms, gen = node.terms(), node.gen()
    for file in node.file.parent.glob("terms.db-*"):
        file.unlink()
    content = node.file.read_bytes()
    if damage == "garbage":
        node.file.write_bytes(content[:100] + random.Random(1).randbytes(len(content) - 100))
    elif damage == "truncated":
        node.file.write_bytes(content[: len(content) // 2])
    elif damage == "another program's":
        node.file.write_bytes(b"hello\n" * 1000)
    else:
        with sqlite3.connect(node.file) as db:
            db.execute("UPDATE terms SET state = 'nonsense'")
        db.close()
    bad = node.file.read_bytes()

    async def after(leaser: StaticLeaser) -> None:
        assert node.terms()["app:a"] == terms["app:a"]
        record = await leaser.campaign("app:b", Reason.BOOTSTRAP)
        assert record.gen > gen and record.epoch == 1 and record.token > token

    node.run(after)
    (aside,) = set_aside(node.file)
    assert aside.read_bytes() == bad
    node.run(after)
    assert set_aside(node.file) == [aside]


def test_a_store_that_breaks_under_way_is_named_and_the_page_stays(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        await leaser.campaign("app:a", Reason.BOOTSTRAP)
        terms = node.terms()
        await leaser._run(lambda: leaser._opened._db.execute("DROP TABLE terms"))
        with pytest.raises(StoreUnavailable):
            await leaser.campaign("app:b", Reason.BOOTSTRAP)
        assert node.terms() == terms and set(leaser.records()) == {"app:a"}

    node.run(work)


def test_a_closing_the_disk_refused_is_written_when_asked_again(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        record = await leaser.campaign("app:a", Reason.BOOTSTRAP)
        db = leaser._opened._db
        await leaser._run(lambda: db.execute("PRAGMA query_only = 1"))
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await leaser.close("app:a", record.token)
        assert node.terms()["app:a"].closing, "nothing starts any more, whatever the disk says"
        await leaser._run(lambda: db.execute("PRAGMA query_only = 0"))
        await leaser.close("app:a", record.token)
        revision = await leaser._run(leaser._opened.revision)
        await leaser.close("app:a", record.token)
        assert await leaser._run(leaser._opened.revision) == revision, "once it is there, it is not written again"

    async def look(leaser: StaticLeaser) -> None:
        assert leaser.records()["app:a"].state is TermState.CLOSING

    node.run(work)
    node.page.unlink()
    create(node.page)
    node.run(look)


def test_a_full_disk_refuses_a_term_whole(node: Node) -> None:
    async def work(leaser: StaticLeaser) -> None:
        await leaser.campaign("app:a", Reason.BOOTSTRAP)
        terms = node.terms()
        db = leaser._opened._db

        def fill() -> None:
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
            with pytest.raises(sqlite3.OperationalError):
                while True:
                    db.execute("INSERT INTO history (phases) VALUES (?)", ("x" * 200,))

        await leaser._run(fill)
        with pytest.raises(StoreFull):
            for n in range(200):
                await leaser.campaign(f"app:b{n}", Reason.BOOTSTRAP)
                terms = node.terms()
        assert node.terms() == terms
        assert set(terms) == {name for name, record in leaser.records().items() if record.held}
        await leaser._run(lambda: db.execute("PRAGMA max_page_count = 100000"))
        await leaser.campaign("app:late", Reason.BOOTSTRAP)
        assert "app:late" in node.terms()

    node.run(work)


def test_more_resources_than_the_page_holds_are_refused_before_anything_is_written(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.consensus.static_leaser.CAPACITY", 2)

    async def work(leaser: StaticLeaser) -> None:
        await leaser.campaign("app:a", Reason.BOOTSTRAP)
        await leaser.campaign("app:b", Reason.BOOTSTRAP)
        with pytest.raises(TooMany):
            await leaser.campaign("app:c", Reason.BOOTSTRAP)
        assert set(node.terms()) == {"app:a", "app:b"} and len(await leaser.history(None, 9)) == 2

    node.run(work)
    assert page_module.CAPACITY >= 1000
