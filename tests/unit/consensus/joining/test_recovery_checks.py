"""From whom a cluster may be begun anew, and what is told of what that loses."""

from __future__ import annotations

from typing import Any

import pytest

from piccolod.errors import Busy, Conflict, Locked
from piccolod.leadership.keys import EpochRecord
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.recovery import Heard, LogEnd, Standing, Store, StoreView
from services.consensus.joining.recovery_checks import check, lost


def known(role: str = "member") -> KnownMember:
    return KnownMember(address="", client_url="", rpc="", role=role)


MEMBERS = {"n1": known(), "n2": known(), "n3": known("witness")}


def end(rev: int = 10, digest: bytes = b"d", *, locked: bool = False) -> LogEnd:
    return LogEnd(rev=rev, digest=digest, gen=7, epoch=3, at_ms=1, locked=locked)


def standing(node: str, at: LogEnd | None, store: Store = Store.SILENT, log_rev: int = 0, problem: str = "") -> Standing:
    return Standing(node=node, view=StoreView(store=store, gen=7, log_rev=log_rev), end=at, problem=problem)


def view(log_rev: int = 0, *, unread: bool = False) -> StoreView:
    return StoreView(store=Store.SILENT, gen=7, log_rev=log_rev, unread=unread)


def heard(node: str, at: LogEnd | None, **view: Any) -> Heard:
    return Heard(node=node, standing=standing(node, at, **view))


@pytest.mark.parametrize("store", [Store.SILENT, Store.RESTORED])
def test_who_has_as_much_as_every_other_one_begins_anew(store: Store) -> None:
    others = [heard("n2", end(9)), Heard(node="n4", silence="it cannot be reached")]
    assert check("n1", standing("n1", end(), store), MEMBERS, others) == end()
    assert check("n1", standing("n1", end(), store), MEMBERS, [heard("n2", end())]) == end()


def test_while_etcd_answers_here_or_at_another_nothing_is_recovered() -> None:
    with pytest.raises(Conflict, match=r"^etcd answers"):
        check("n1", standing("n1", end(), Store.ANSWERS), MEMBERS, [])
    with pytest.raises(Conflict, match=r"^n2 says that etcd answers") as told:
        check("n1", standing("n1", end()), MEMBERS, [heard("n2", end(1), store=Store.ANSWERS)])
    assert "cluster leave --force" in (told.value.hint or "")


def test_nobody_is_taken_for_silent_who_has_just_started() -> None:
    for own, other in ((Store.UNKNOWN, Store.SILENT), (Store.SILENT, Store.UNKNOWN)):
        with pytest.raises(Busy, match=r"^n[12] has just started, and does not know yet whether etcd answers"):
            check("n1", standing("n1", end(), own), MEMBERS, [heard("n2", end(), store=other)])


def test_two_are_not_recovered_at_the_same_time() -> None:
    with pytest.raises(Busy, match=r"^n2 is being recovered"):
        check("n1", standing("n1", end()), MEMBERS, [heard("n2", end(), store=Store.RECOVERING)])


@pytest.mark.parametrize(
    "more",
    [
        heard("n2", end(11)),
        heard("n2", end(11, locked=True)),
        heard("n2", end(10), log_rev=11),
        heard("n2", None, log_rev=11, problem="it is damaged"),
    ],
    ids=["in its log", "while it is locked", "in its etcd", "in its etcd alone"],
)
def test_one_that_has_more_is_named(more: Heard) -> None:
    with pytest.raises(Conflict, match="n2 has the log up to rev 11, and this node up to 10") as told:
        check("n1", standing("n1", end()), MEMBERS, [Heard(node="n0", silence="off"), heard("n4", end(10)), more])
    assert "run it on n2" in (told.value.hint or "")


def test_a_log_that_is_not_proven_begins_nothing() -> None:
    with pytest.raises(Locked, match="locked"):
        check("n1", standing("n1", end(locked=True)), MEMBERS, [])
    with pytest.raises(Conflict, match="damaged"):
        check("n1", standing("n1", None, problem="control.db is damaged"), MEMBERS, [])
    with pytest.raises(Conflict, match="witness"):
        check("n3", standing("n3", end()), MEMBERS, [])


def test_who_knows_of_no_member_begins_nothing() -> None:
    """Nobody was asked, and nobody would be told to be lost."""
    with pytest.raises(Conflict, match=r"members\.json of this node names nobody") as told:
        check("n1", standing("n1", end()), {}, [])
    assert "another member" in (told.value.hint or "")


def test_it_is_told_whose_writes_may_be_lost_and_who_has_to_join_again() -> None:
    others = [Heard(node="n2", silence="n2 cannot be reached"), heard("n4", end(10, b"other")), heard("n5", end(10))]
    homes = {
        "kernel": EpochRecord(4, "n2", 1, 3.0, held=True),
        "app:blog": EpochRecord(1, "n2", 1, 3.0, held=True),
        "app:wiki": EpochRecord(2, "n2", 1, 3.0, held=False),
        "app:mine": EpochRecord(2, "n1", 1, 3.0, held=False),
    }
    told = lost("n1", end(), view(), {name: known() for name in ("n1", "n2", "n3", "n4", "n5")}, others, homes)
    assert told[0].startswith("writes after rev 10") and "n2 cannot be reached" in told[0] and "n3 has no store" in told[0]
    assert told[1].startswith("what n4 has instead of this node's rev 10")
    assert told[2] == "the data of blog, wiki: it is on n2, and they begin here without it"
    assert "n2, n3, n4, n5" in told[3] and len(told) == 5


def test_an_etcd_of_its_own_that_could_not_be_read_is_not_taken_for_one_that_has_nothing() -> None:
    told = lost("n1", end(), view(unread=True), MEMBERS, [heard("n2", end())], {})
    assert told[0] == "what this node's own etcd has after rev 10: it could not be read"
    assert told[1].startswith("the epochs of apps")
    assert any(each.startswith("writes after rev 10, for not all could be asked (n3") for each in told)
    assert not [each for each in told if "only others had" in each]


def test_what_the_own_etcd_has_and_the_log_did_not_take_is_named() -> None:
    told = lost("n1", end(), view(12), MEMBERS, [Heard(node="n2", silence="off")], {})
    assert told[0].startswith("what this node's own etcd has from rev 11 to 12")
    assert not [each for each in told if "only others had" in each]
    assert "own etcd" not in " ".join(lost("n1", end(), view(10), MEMBERS, [heard("n2", end())], {}))


def test_the_etcd_of_another_one_that_could_not_be_read_is_named() -> None:
    other = Standing(node="n2", view=view(unread=True), end=end())
    told = lost("n1", end(), view(), MEMBERS, [Heard(node="n2", standing=other)], {})
    assert "what the etcd of n2 has after rev 10: it does not answer there" in told


def test_where_everybody_said_the_same_no_write_is_lost() -> None:
    told = lost("n1", end(), view(), {"n1": known(), "n2": known()}, [heard("n2", end())], {})
    assert not [each for each in told if "writes" in each]


def test_a_node_that_was_taken_out_before_is_told_so() -> None:
    told = lost("n1", end(), view(), {"n2": known()}, [heard("n2", end())], {})
    assert told[0] == "everything since n1 was taken out of the cluster"
