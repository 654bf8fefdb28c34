"""The transactions against a store: what each needs, and what it leaves."""

from __future__ import annotations

import pytest

from piccolod.leadership import transactions, view
from piccolod.leadership.keys import EpochRecord, GenRecord, IntentRecord, LeadRecord, SessionRecord
from piccolod.leadership.roles import Reason
from piccolod.leadership.transactions import CLAIMS_AT_ONCE, Claimed, Compare, Field, Outcome, Put, Transaction
from piccolod.leadership.view import View
from tests.sim.store import Store
from tests.sim.world import World

ETCD_OPERATIONS = 128
HERE, GONE = Outcome.COMMITTED, Outcome.REFUSED


class Desk:
    """Nodes `a` and `b` with sessions and leases; `a` has named `b`, and holds `kernel`."""

    def __init__(self) -> None:
        self.store = Store(World(0), 0.4)
        self.gen = GenRecord(1, self.store.cluster_id)
        self.lease = {node: self.store.grant(5) for node in ("a", "b")}
        self.sid = {node: self.begin(node) for node in ("a", "b")}
        assert self.store.commit(transactions.ack("a", self.sid["a"], 0, ("a", "b"))) is HERE
        assert self.store.commit(self.claim("a", "kernel")) is HERE
        self.token = self.view().epochs["kernel"].mod

    def begin(self, node: str) -> int:
        assert self.store.commit(transactions.session(node, self.record(node), self.gen)) is HERE
        return self.store.rev

    def record(self, node: str) -> SessionRecord:
        return SessionRecord(self.lease[node], "boot", 0, 3.0)

    def view(self) -> View:
        return view.read(self.store.rev, self.store.read())

    def claim(self, node: str, *resources: str, seen: View | None = None) -> Transaction:
        seen = seen or self.view()
        claims = [
            Claimed(name, seen.epochs[name].value.epoch + 1 if name in seen.epochs else 1, Reason.EXPIRED) for name in resources
        ]
        return transactions.claim(node, f"at-{node}", self.sid[node], self.lease[node], 3.0, self.gen, seen, claims)

    def beat(self, node: str) -> Outcome:
        return self.store.commit(transactions.heartbeat(node, self.sid[node], self.record(node), self.gen))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_token_is_the_revision_of_the_claim_and_heartbeats_leave_it(desk: Desk) -> None:
    assert desk.beat("a") is HERE
    assert desk.view().epochs["kernel"].mod == desk.token
    assert desk.view().epochs["kernel"].value == EpochRecord(1, "a", desk.sid["a"], 3.0, held=True)
    assert desk.store.records["lead/kernel"].value == LeadRecord("a", 1, "at-a", Reason.EXPIRED)
    assert desk.store.records["hist/kernel/1"].value.to_node == "a"


def test_a_session_begins_only_where_none_is_and_under_the_very_gen(desk: Desk) -> None:
    assert desk.store.commit(transactions.session("a", desk.record("a"), desk.gen)) is GONE
    assert desk.store.commit(transactions.session("c", desk.record("a"), GenRecord(2, desk.store.cluster_id))) is GONE


def test_a_session_that_was_ended_takes_no_heartbeat_also_when_a_new_one_has_begun(desk: Desk) -> None:
    assert desk.store.commit(transactions.end("a", desk.sid["a"])) is HERE
    assert desk.beat("a") is GONE
    desk.begin("a")
    assert desk.beat("a") is GONE
    assert desk.store.commit(transactions.end("a", desk.sid["a"])) is GONE


def test_one_more_heartbeat_saves_a_session_from_being_expired(desk: Desk) -> None:
    expire = transactions.expire("a", desk.view())
    desk.beat("a")
    assert desk.store.commit(expire) is GONE
    assert desk.store.commit(transactions.expire("a", desk.view())) is HERE


def test_a_list_of_takers_that_changed_saves_it_as_well(desk: Desk) -> None:
    expire = transactions.expire("a", desk.view())
    known = desk.view().acks["a"].mod
    assert desk.store.commit(transactions.ack("a", desk.sid["a"], known, ("a",))) is HERE
    assert desk.store.commit(expire) is GONE


def test_nothing_is_claimed_from_a_session_that_lives(desk: Desk) -> None:
    assert desk.store.commit(desk.claim("b", "kernel")) is GONE
    desk.store.commit(transactions.expire("a", desk.view()))
    assert desk.store.commit(desk.claim("b", "kernel")) is HERE
    assert desk.view().epochs["kernel"].value.epoch == 2


def test_of_two_claims_one_wins(desk: Desk) -> None:
    desk.store.commit(transactions.expire("a", desk.view()))
    desk.sid["a"] = desk.begin("a")
    seen = desk.view()
    assert desk.store.commit(desk.claim("b", "kernel", seen=seen)) is HERE
    assert desk.store.commit(desk.claim("a", "kernel", seen=seen)) is GONE


def test_a_batch_of_claims_is_all_or_nothing(desk: Desk) -> None:
    seen = desk.view()
    assert desk.store.commit(desk.claim("b", "app:one")) is HERE
    assert desk.store.commit(desk.claim("a", "app:one", "app:two", seen=seen)) is GONE
    assert "epoch/app:two" not in desk.store.records


def test_the_largest_batch_fits_into_one_transaction_of_etcd(desk: Desk) -> None:
    names = [f"app:{number}" for number in range(CLAIMS_AT_ONCE)]
    desk.store.commit(desk.claim("a", *names))
    desk.store.commit(transactions.expire("a", desk.view()))
    claim = desk.claim("b", *names)
    assert max(len(claim.compares), len(claim.puts) + len(claim.deletes)) <= ETCD_OPERATIONS
    assert desk.store.commit(claim) is HERE


def test_a_release_ends_the_term_that_it_names_and_no_other(desk: Desk) -> None:
    held = desk.view().epochs["kernel"].value
    assert desk.store.commit(transactions.release("kernel", desk.token - 1, held, Reason.DRAIN, {})) is GONE
    assert desk.store.commit(transactions.release("kernel", desk.token, held, Reason.DRAIN, {"closing": 3.0})) is HERE
    assert "lead/kernel" not in desk.store.records
    assert desk.store.records["hist/kernel/1/end"].value.phases == {"closing": 3.0}
    assert desk.store.commit(transactions.release("kernel", desk.token, held, Reason.DRAIN, {})) is GONE
    assert desk.store.commit(desk.claim("b", "kernel")) is HERE


def handed(desk: Desk, intent_mod: int) -> Transaction:
    begins = Claimed("kernel", 2, Reason.SWITCHOVER)
    return transactions.handover("kernel", desk.token, intent_mod, desk.gen, desk.view(), "a", "b", "at-b", begins)


def intended(desk: Desk) -> int:
    assert desk.store.commit(transactions.intent("kernel", desk.token, 0, IntentRecord(1, "b", "at-b", "op"))) is HERE
    return desk.store.rev


def test_a_handover_gives_the_term_to_the_session_and_the_lease_of_its_target(desk: Desk) -> None:
    assert desk.store.commit(handed(desk, intended(desk))) is HERE
    assert desk.view().epochs["kernel"].value == EpochRecord(2, "b", desk.sid["b"], 3.0, held=True)
    assert "intent/kernel" not in desk.store.records
    desk.store.revoke(desk.lease["b"])
    assert "lead/kernel" not in desk.store.records


def test_after_an_abort_the_handover_can_not_commit_any_more(desk: Desk) -> None:
    mod = intended(desk)
    late = handed(desk, mod)
    assert desk.store.commit(transactions.abort("kernel", desk.token, mod)) is HERE
    assert desk.store.commit(late) is GONE
    desk.store.commit(transactions.intent("kernel", desk.token, 0, IntentRecord(1, "b", "at-b", "op")))
    assert desk.store.commit(late) is GONE


def test_after_a_handover_the_abort_is_refused(desk: Desk) -> None:
    mod = intended(desk)
    desk.store.commit(handed(desk, mod))
    assert desk.store.commit(transactions.abort("kernel", desk.token, mod)) is GONE


def test_nothing_is_handed_to_a_target_that_began_anew_or_has_lost_its_lease(desk: Desk) -> None:
    mod = intended(desk)
    late = handed(desk, mod)
    desk.store.revoke(desk.lease["b"])
    assert desk.store.commit(late) is Outcome.NO_LEASE
    desk.store.commit(transactions.end("b", desk.sid["b"]))
    desk.begin("b")
    assert desk.store.commit(late) is GONE


def test_a_public_record_is_put_back_only_where_it_is_missing(desk: Desk) -> None:
    terms = [(desk.token, Claimed("kernel", 1, Reason.EXPIRED))]
    lease = desk.store.grant(5)
    again = transactions.record("a", "at-a", desk.sid["a"], lease, terms)
    assert desk.store.commit(again) is GONE
    desk.store.revoke(desk.lease["a"])
    assert desk.store.commit(again) is HERE
    assert desk.store.records["lead/kernel"].value.node == "a"


def test_a_guarded_write_needs_token_session_gen_and_its_own_compares(desk: Desk) -> None:
    head = (Compare("ctl/head", Field.MOD, 0),)
    put = (Put("ctl/head", 1),)

    def write(sid: int, token: int, gen: GenRecord) -> Outcome:
        return desk.store.commit(transactions.guarded("a", sid, token, gen, head, put, ()))

    assert write(desk.sid["a"], desk.token - 1, desk.gen) is GONE
    assert write(desk.sid["a"] + 1, desk.token, desk.gen) is GONE
    assert write(desk.sid["a"], desk.token, GenRecord(2, desk.store.cluster_id)) is GONE
    assert write(desk.sid["a"], desk.token, desk.gen) is HERE
    assert write(desk.sid["a"], desk.token, desk.gen) is GONE
