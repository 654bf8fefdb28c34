"""The hook of the service manager on real etcd: what it releases, what it does not, and who leads then."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import msgspec
import pytest

from piccolod import clock
from piccolod.errors import StoreRestored, StoreUnavailable
from piccolod.leadership import keys, transactions
from piccolod.leadership.after_crash import after_crash
from piccolod.leadership.events import Memory
from piccolod.leadership.keys import SessionRecord
from piccolod.leadership.records import ChangeRecord
from piccolod.leadership.roles import Reason
from piccolod.leadership.transactions import Outcome
from services.consensus import history, wire
from services.consensus.after_crash import leads_on, release
from services.consensus.etcd.transaction import Delete, Put, Transaction
from services.consensus.etcd_store import EtcdStore, Snapshot
from services.consensus.memory import MemoryFile
from tests.node import until
from tests.unit.consensus.etcd.conftest import opened
from tests.unit.consensus.etcd.member import House, Node, holders, living

# A commit for the release and one for the claim, and a busy machine.
AT_ONCE_S = 2.0
NOTHING = frozenset[str]()


def in_etcd(home: House) -> Snapshot:
    async def look() -> Snapshot:
        async with opened(home.etcd) as client:
            return await EtcdStore(client, home.prefix).read(2.0)

    return asyncio.run(look())


def a_dead_leader(home: House) -> Node:
    """One of three, of which the others are switched off; killed in its term of the kernel."""
    node, *_ = asyncio.run(home.begin(3))
    process = home.start(node)
    until(node.token, "it leads", 15)
    until(node.has_takers, "its takers are acknowledged", 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return node


def test_after_it_another_node_leads_at_once_and_the_dead_one_resumes_nothing(home: House) -> None:
    holder, others, process = home.elected(3)
    before = holder.page()
    process.send_signal(signal.SIGKILL)
    process.wait()
    began_at = clock.now()
    said = after_crash(holder.paths, release, leads_on)
    print(f"hook took {(clock.now() - began_at) * 1000:.0f} ms")
    assert said == "released kernel; ended the session"
    (next_one,) = until(lambda: holders(others), "another one leads", 10, 0.005)
    took_s = clock.now() - began_at
    print(f"another node leads {took_s * 1000:.0f} ms after the hook began")
    assert took_s < AT_ONCE_S and clock.now() < before.hard_at
    assert next_one.page().terms["kernel"].epoch == before.terms["kernel"].epoch + 1

    assert holder.page().sid == 0

    async def told() -> ChangeRecord:
        async with opened(home.etcd) as client:
            return (await history.read(EtcdStore(client, home.prefix), "kernel", 1))[0]

    change = asyncio.run(told())
    assert (change.to_node, list(change.phases)) == (next_one.name, ["claimed"]), "it was released: nothing had to be detected"
    assert change.phases["claimed"] < took_s * 1000 + 50
    home.start(holder)
    until(lambda: holder.page().sid, "it is back", 10)
    assert holder.page().sid > before.sid
    assert not holder.token()


def test_what_is_not_proven_stays_held_and_the_session_with_it(home: House) -> None:
    node = a_dead_leader(home)
    assert release(node.paths, frozenset({"kernel"})) == (
        "released nothing; not released, for something of it may live: kernel; the session runs out by itself"
    )
    seen = in_etcd(home).records
    assert seen["epoch/kernel"].value.held
    assert keys.SESSION + node.name in seen


def test_an_app_that_does_not_die_keeps_the_session_and_not_the_kernel(home: House) -> None:
    node = a_dead_leader(home)
    said = release(node.paths, frozenset({"app:notes"}))
    assert said.startswith("released kernel; not released, for something of it may live: app:notes")
    seen = in_etcd(home).records
    assert not seen["epoch/kernel"].value.held
    assert "lead/kernel" not in seen
    assert keys.SESSION + node.name in seen


def test_a_second_one_ends_what_the_first_one_left(home: House) -> None:
    node = a_dead_leader(home)
    release(node.paths, frozenset({"app:notes"}))
    assert release(node.paths, NOTHING) == "released nothing; ended the session"
    assert release(node.paths, NOTHING) == "released nothing: no session of this boot is left in etcd"
    assert keys.SESSION + node.name not in in_etcd(home).records


def test_a_machine_that_has_the_name_by_now_keeps_its_session_and_its_terms(home: House) -> None:
    node = a_dead_leader(home)
    session, epoch = f"{home.prefix}{keys.SESSION}{node.name}", f"{home.prefix}{keys.EPOCH}kernel"
    term = in_etcd(home).records["epoch/kernel"].value

    async def replaced() -> None:
        async with opened(home.etcd) as client:
            await client.transact(Transaction((), (Delete(session),)), 5)
            begun = Put(session, wire.encode(SessionRecord(0, "the boot of another machine", 1, 3.0)))
            sid = (await client.transact(Transaction((), (begun,)), 5)).revision
            held = Put(epoch, wire.encode(msgspec.structs.replace(term, epoch=term.epoch + 1, sid=sid)))
            await client.transact(Transaction((), (held,)), 5)

    asyncio.run(replaced())
    before = in_etcd(home).records
    assert release(node.paths, NOTHING) == "released nothing: no session of this boot is left in etcd"
    after = in_etcd(home).records
    for key in ("epoch/kernel", keys.SESSION + node.name):
        assert after[key] == before[key]
    assert after["epoch/kernel"].value.held


@pytest.mark.parametrize("changed", [{"cluster_id": 1}, {"rev": 1 << 40}, {"gen": 1}, {"restored": True}])
def test_an_etcd_that_this_node_does_not_know_is_told_nothing(home: House, changed: dict[str, Any]) -> None:
    node = a_dead_leader(home)
    file = MemoryFile(node.paths.cluster / "seen.json")
    memory = file.read()
    assert isinstance(memory, Memory)
    file.write(msgspec.structs.replace(memory, **changed))
    with pytest.raises(StoreRestored):
        release(node.paths, NOTHING)
    assert in_etcd(home).records["epoch/kernel"].value.held


def test_peers_without_a_quorum_are_asked_for_a_bounded_time(home: House) -> None:
    node = a_dead_leader(home)
    for member in home.etcd.members[1:]:
        member.freeze()
    began_at = clock.now()
    with pytest.raises(StoreUnavailable):
        release(node.paths, NOTHING)
    assert clock.now() - began_at < 2.0


def test_whether_the_others_lead_on_is_asked_of_their_etcd_alone_and_for_a_bounded_time(home: House) -> None:
    node, *_ = asyncio.run(home.begin(1))
    home.etcd.members[0].freeze()
    until(lambda: leads_on(node.paths), "the others answer, once they have elected, if that one led them", 5)
    home.etcd.members[0].thaw()
    home.etcd.members[1].freeze()
    home.etcd.members[2].freeze()
    began_at = clock.now()
    assert not leads_on(node.paths)
    assert clock.now() - began_at < 2.0
    (node.paths.cluster / "members.json").unlink()
    assert not leads_on(node.paths)


def test_its_own_member_of_etcd_is_not_waited_for(home: House) -> None:
    node = a_dead_leader(home)
    home.etcd.members[0].freeze()
    began_at = clock.now()
    assert release(node.paths, NOTHING) == "released kernel; ended the session"
    print(f"released in {(clock.now() - began_at) * 1000:.0f} ms beside a dead member")


def test_what_commits_late_ends_nothing_of_the_next_session(home: House) -> None:
    """As when no answer came, and the node is back before etcd takes it."""
    node = a_dead_leader(home)
    before = in_etcd(home).records
    epoch = before["epoch/kernel"]
    late = (
        transactions.release("kernel", epoch.mod, epoch.value, Reason.EXPIRED, {}),
        transactions.end(node.name, before["sess/n1"].create),
    )
    assert after_crash(node.paths, lambda *_: "etcd was not told", leads_on) == "etcd was not told"

    async def main() -> None:
        async with living(node) as live:
            term = await live.lead()
            assert node.page().sid > before["sess/n1"].create
            for transaction in late:
                done = await live.leaser.driver.store.commit(transaction, 2.0)
                assert done.outcome is Outcome.REFUSED
            assert await live.lead() == term

    asyncio.run(main())
