"""persistence as a member of a cluster: following, leading, and what it does when etcd is away or in doubt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from piccolod import clock
from piccolod.errors import Locked, OutcomeUnknown, PiccoloError, StoreUnavailable
from piccolod.protocol.base import Level
from piccolod.protocol.events import ControlRevChanged
from piccolod.protocol.log import Append, Drain, Drained, GetHead
from piccolod.protocol.persistence import Lock
from services.persistence.member import POLL_S

from .etcd_double import flipped
from .house import until
from .town import Node, Town, in_town


@in_town
async def test_a_commit_of_the_leader_is_shown_by_a_follower_on_the_hint(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    looked = len([asked for asked in n2.consensus.asked if type(asked).__name__ == "GetHead"])
    began = clock.now()
    for number in range(20):
        await n2.catches_up(await n1.put("a", number))
    took_s = clock.now() - began
    assert n2.shown()[-20:] == list(range(5, 25))
    assert await n2.get("a") == 19
    polls = len([asked for asked in n2.consensus.asked if type(asked).__name__ == "GetHead"]) - looked
    assert polls <= took_s / POLL_S + 2, "a hint asks for entries, not for the head first"
    assert took_s < 20 * POLL_S, "and nobody waited for the poll"


@in_town
async def test_a_hint_that_is_lost_is_made_up_for_by_the_poll(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    n2.hears_hints = False
    await n2.catches_up(await n1.put("a", 1), POLL_S + 1.0)


@in_town
async def test_a_hint_for_what_never_comes_does_nothing(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    shown = n2.shown()
    n2.hear(ControlRevChanged(rev=1_000_000))
    await asyncio.sleep(0.1)
    assert n2.shown() == shown
    assert n2.module.healths[-1][0] is Level.OK
    await n2.catches_up(await n1.put("a", 1))


@in_town
async def test_what_a_follower_does_not_believe_is_named_in_its_health_until_it_is_made_good(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    n2.hears_hints = False
    rev = await n1.put("a", 1)
    good = town.etcd.log[rev]
    town.etcd.log[rev] = flipped(good)
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "health names it")
    assert str(rev) in n2.module.healths[-1][1]
    assert n2.rev == rev - 1
    assert await n2.get("old1") == 1
    town.etcd.log[rev] = good
    await n2.catches_up(rev)
    await until(lambda: n2.module.healths[-1][0] is Level.OK, "health is well again")


@in_town
async def test_a_locked_leader_drains_gives_the_kernel_up_and_another_member_takes_it(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    writing = [asyncio.ensure_future(n1.put(f"w{number}", number)) for number in range(20)]
    await asyncio.sleep(0)
    await n1.ask(Lock())
    assert sorted(await asyncio.gather(*writing)) == list(range(5, 25)), "what was under way is made"
    assert n1.withdrawn == ["locked"]
    await n2.until_leads()
    assert await n2.put("a", 1) == 25
    assert await n2.get("w19") == 19
    with pytest.raises(Locked):
        await n1.put("a", 2)
    drained: Drained = await n1.ask(Drain(), caller="consensus")
    await n1.catches_up(25)
    assert drained.rev in (24, 25)


@in_town
async def test_who_is_behind_does_not_campaign(town: Town) -> None:
    n1 = await town.found()
    n2 = await town.join("n2")
    await n1.until_leads()
    n2.hears_hints = False
    n2.consensus.spoil = lambda page: type(page)(entries=(), first_rev=page.first_rev)
    await n1.put("a", 1)
    await until(lambda: n2.module.healths[-1][0] is Level.WARN, "it does not follow")
    n1.campaigns = False
    town.etcd.release()
    n1.deposed()
    town.tell_roles()
    asked = len(n2.consensus.asked)
    await until(lambda: len(n2.consensus.asked) > asked + 6, "it looked several times")
    assert not n2.leads
    n2.consensus.spoil = lambda page: page
    await n2.until_leads()
    assert await n2.put("b", 1) == 6


@in_town
async def test_an_etcd_that_does_not_answer_for_a_moment_costs_no_term(town: Town) -> None:
    n1 = await town.found()
    await n1.until_leads()
    await n1.put("a", 1)
    town.etcd.down = True
    with pytest.raises(StoreUnavailable):
        await n1.put("a", 2)
    await looks(n1, 2)
    town.etcd.down = False
    assert n1.leads and n1.withdrawn == []
    assert await n1.put("a", 3) == 6


@in_town
async def test_a_restarted_module_goes_on_in_its_term_and_fetches_what_it_did_not_file(town: Town) -> None:
    n1 = await town.found()
    await n1.until_leads()
    await n1.put("a", 1)
    catch_up = n1.service._vault.catch_up  # type: ignore[attr-defined]
    catch_up.copy.submit = lambda items: None  # it dies before the file has it
    await n1.put("a", 2)
    await n1.again()
    token = town.etcd.token
    assert await n1.put("a", 3) == 7
    assert town.etcd.token == token
    assert await n1.get("a") == 3


@in_town
async def test_a_drain_of_a_locked_or_a_starting_node_is_done_at_once(town: Town) -> None:
    await town.found()
    n2 = await town.locked_follower()
    drained: Drained = await n2.ask(Drain(), caller="consensus")
    assert (drained.rev, drained.digest) == (4, town.etcd.head_digest)
    n2.service._vault.opened.clear()
    await asyncio.wait_for(n2.ask(Drain(), caller="consensus"), 0.5)
    n2.service._vault.opened.set()


@in_town
async def test_an_unknown_write_that_comes_late_is_shown_by_the_leader_without_another_write(town: Town) -> None:
    n1 = await town.found()
    n1.consensus.unknown.append("late, cut off")
    writing = asyncio.ensure_future(n1.put("a", 1, idem="k"))
    with pytest.raises(OutcomeUnknown):
        await writing
    n1.consensus.cut_off = False
    await looks(n1, 1)  # at a head that does not show it, which proves nothing
    n1.consensus.arrive()
    await n1.catches_up(5, 2.0)
    assert await n1.get("a") == 1
    assert await n1.put("a", 1, idem="k") == 5


@in_town
async def test_writers_that_keep_coming_do_not_keep_a_node_whose_write_is_in_doubt_from_leading_again(town: Town) -> None:
    node = await town.found()
    await node.put("a", 1)
    real = node.consensus_does
    silent = stop = False

    async def does(request: Any, timeout_s: float) -> Any:
        if silent:
            raise OutcomeUnknown("lost") if isinstance(request, Append) else StoreUnavailable("etcd does not answer")
        return await real(request, timeout_s)

    async def write_on(number: int) -> None:
        value = 0
        while not stop:
            value += 1
            try:
                await node.put(f"w{number}", value)
            except PiccoloError:
                await asyncio.sleep(0.1)

    node.consensus_does = does  # type: ignore[method-assign]
    silent = True
    with pytest.raises(OutcomeUnknown):
        await node.put("z", 1)
    node.deposed()
    town.etcd.release()
    town.tell_roles()
    writers = []
    try:
        for number in range(3):
            writers.append(asyncio.ensure_future(write_on(number)))
            await asyncio.sleep(0.7)  # so that one of them is parked at each moment
        silent = False
        await until(lambda: node.leads, "it leads again while they write", 12)
    finally:
        stop = True
        await asyncio.gather(*writers)


async def looks(member: Node, times: int) -> None:
    """The upkeep has begun that many looks at the head, each after the one before it has ended."""

    def seen() -> int:
        return sum(isinstance(each, GetHead) for each in member.consensus.asked)

    before = seen()
    await until(lambda: seen() > before + times, f"{times} looks at the head", 10.0)
