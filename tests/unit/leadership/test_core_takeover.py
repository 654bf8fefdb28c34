"""What a node takes from others, when, and by whose leave; and that the core is a function."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piccolod.leadership import core, events, takeover
from piccolod.leadership.actions import GrantLease, Opened, Send
from piccolod.leadership.keys import AckRecord, EpochRecord, IntentRecord
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Config, Leadership, Offer, Step
from piccolod.leadership.timing import FAST, wait_s
from piccolod.leadership.transactions import CLAIMS_AT_ONCE, Kind, Outcome
from piccolod.leadership.view import Record, View
from tests.unit.leadership.bench import Bench, Other

W = wait_s(FAST.span_s)


def beside(*resources: str, acks: tuple[str, ...] = ("a", "b")) -> tuple[Bench, Other]:
    """A bench that wants what another node holds."""
    bench = Bench()
    other = Other(bench.store, acks=acks)
    if resources:
        other.claim(*resources)
    bench.start().settle()
    for resource in resources:
        bench.feed(events.Campaign(resource))
    return bench, other


def test_many_are_campaigned_for_and_given_up_at_once_and_the_others_stay() -> None:
    bench = Bench()
    bench.start().settle()
    bench.feed(events.Campaign("kernel"))
    bench.feed(events.Campaigns({"app:a": 0.0, "app:b": 60.0, "app:c": 60.0}))
    bench.settle()
    assert bench.state.terms.keys() == {"kernel", "app:a"}, "each after its own delay"
    bench.feed(events.Campaigns({"app:b": 0.0}, frozenset({"app:a", "app:c"})))
    bench.settle()
    assert bench.state.terms.keys() == {"kernel", "app:a", "app:b"}, "what is held goes on"
    assert bench.state.wants.keys() == {"kernel", "app:b"}


def test_a_silent_session_is_expired_after_w_since_its_last_change_was_seen_here() -> None:
    bench, _ = beside("kernel")
    bench.live(W - 0.01)
    assert "sess/b" in bench.store.records
    bench.live(0.02)
    assert "sess/b" not in bench.store.records
    assert bench.last(Opened).reason is Reason.EXPIRED
    phases = bench.store.records["hist/kernel/2"].value.phases
    assert list(phases) == ["detected", "expired", "claimed"]
    assert phases["detected"] == pytest.approx(W * 1000, abs=10)
    assert 0 <= phases["expired"] < 50 and 0 <= phases["claimed"] < 50
    assert bench.last(Opened).took_s * 1000 >= phases["claimed"]


def test_a_session_that_another_node_expired_was_silent_for_one_span_of_which_no_part_is_known() -> None:
    bench, other = beside("kernel")
    bench.live(1.0)
    other.end()
    bench.live(0.1)
    phases = bench.store.records["hist/kernel/2"].value.phases
    assert list(phases) == ["detected", "claimed"]
    assert phases["detected"] == pytest.approx(1050, abs=100)


def test_each_change_that_is_seen_begins_the_wait_anew() -> None:
    bench, other = beside("kernel")
    for _ in range(5):
        bench.live(W - 0.1)
        other.beat()
        bench.watch()
    assert "sess/b" in bench.store.records


def test_a_change_that_was_delivered_late_counts_from_when_it_was_seen() -> None:
    bench, other = beside("kernel")
    other.beat()
    bench.pass_time(1.0)
    bench.settle()
    bench.live(W - 0.05)
    assert "sess/b" in bench.store.records
    bench.live(0.1)
    assert "sess/b" not in bench.store.records


def test_the_span_is_the_owners() -> None:
    bench, other = beside("kernel")
    record = bench.store.records["sess/b"]
    slow = msgspec.structs.replace(record.value, span_s=10.0)
    bench.store._apply([("sess/b", slow, 0)], [])
    bench.watch()
    bench.live(9.0)
    assert bench.store.records["sess/b"].create == other.sid
    bench.live(1.1)
    assert "sess/b" not in bench.store.records


def test_a_process_that_restarts_waits_anew() -> None:
    bench, _ = beside("kernel")
    bench.live(W - 0.1)
    again = Bench(bench.store)
    again.now = bench.now
    again.start(bench.page, bench.state.remembered).settle()
    again.live(1.0)
    assert "sess/b" in bench.store.records


def test_who_was_not_named_by_the_owner_neither_expires_nor_claims() -> None:
    bench, other = beside("kernel", acks=("b",))
    bench.live(3 * W)
    assert "sess/b" in bench.store.records
    other.end()
    bench.live(1.0)
    assert "kernel" not in bench.state.terms
    bench.store._apply([("ack/b", AckRecord(("a", "b")), 0)], [])
    bench.live(0.5)
    assert "kernel" in bench.state.terms


def test_what_was_released_is_free_for_all() -> None:
    source = Bench(node="b").lead("kernel")
    bench = Bench(source.store).start()
    bench.settle()
    bench.feed(events.Campaign("kernel"))
    source.feed(events.Release("kernel", source.token("kernel"), Reason.DRAIN))
    source.settle()
    bench.watch()
    bench.settle()
    assert bench.last(Opened).reason is Reason.RELEASED


def test_a_node_takes_back_at_once_what_its_former_session_held() -> None:
    bench = Bench().lead("kernel")
    bench.pass_time(3.0)
    bench.settle()
    assert bench.page.terms["kernel"].epoch == 2


def test_a_candidate_waits_for_its_place_after_the_vacancy_was_seen() -> None:
    bench, other = beside("kernel")
    bench.feed(events.Campaign("kernel", delay_s=0.2))
    other.end()
    bench.watch()
    bench.settle()
    bench.live(0.19)
    assert "kernel" not in bench.state.terms
    bench.live(0.02)
    assert "kernel" in bench.state.terms


def test_many_are_claimed_in_batches() -> None:
    bench = Bench().start()
    bench.settle()
    names = [f"app:{number}" for number in range(CLAIMS_AT_ONCE + 1)]
    for name in names:
        bench.feed(events.Campaign(name, delay_s=0.1))
    bench.now += 0.11
    bench.tick()
    claims = [action for action in bench.open if isinstance(action, Send) and action.transaction.kind is Kind.CLAIM]
    assert [len(claim.transaction.puts) // 3 for claim in claims] == [CLAIMS_AT_ONCE, 1]
    bench.settle()
    assert set(names) == set(bench.state.terms)


@pytest.mark.parametrize("commits", [True, False])
def test_a_claim_with_unknown_outcome_opens_once_it_is_seen_or_is_sent_again(commits: bool) -> None:
    bench = Bench().start()
    bench.settle()
    bench.feed(events.Campaign("kernel"))
    bench.lose_answer(bench.sent(Kind.CLAIM), commits=commits)
    assert "kernel" not in bench.state.terms
    bench.live(0.5)
    assert bench.last(Opened).epoch == 1
    assert bench.store.records["epoch/kernel"].value.epoch == 1


def test_paused_nothing_moves_but_a_node_may_take_back_its_own() -> None:
    bench, _ = beside("kernel")
    bench.feed(events.Campaign("app:mine"))
    bench.settle()
    bench.feed(events.Pause(on=True))
    bench.live(3 * W)
    assert "sess/b" in bench.store.records
    bench.pass_time(3.0)
    bench.settle()
    assert bench.page.terms["app:mine"].epoch == 2
    bench.feed(events.Pause(on=False))
    bench.live(W + 0.1)
    assert "kernel" in bench.state.terms


def test_who_withdrew_claims_nothing() -> None:
    bench, other = beside("kernel")
    bench.feed(events.Withdraw("kernel"))
    other.end()
    bench.live(3 * W)
    assert "kernel" not in bench.state.terms


def test_a_node_that_cannot_act_claims_nothing() -> None:
    bench, other = beside("kernel")
    bench.supervisor_acts = False
    bench.tick()
    other.end()
    bench.watch()
    assert not bench.sends(Kind.CLAIM)
    bench.supervisor_acts = True
    bench.live(0.2)
    assert "kernel" in bench.state.terms


# --- the lease


def test_a_lost_lease_is_replaced_and_the_public_records_are_put_back() -> None:
    bench = Bench().lead("kernel", "app:a")
    lease = bench.state.lease_id
    bench.store.revoke(lease)
    bench.feed(events.LeaseLost(lease))
    bench.live(0.2)
    assert bench.store.records["lead/kernel"].value.node == "a"
    assert bench.store.records["lead/app:a"].value.epoch == 1
    assert bench.store.records["sess/a"].value.lease_id == bench.state.lease_id != lease
    assert len(bench.all(Opened)) == 2, "nothing else has happened"


def test_a_lease_that_is_gone_without_a_word_is_noticed_by_the_missing_records() -> None:
    bench = Bench().lead("kernel")
    bench.store.revoke(bench.state.lease_id)
    bench.live(1.0)
    assert bench.store.records["lead/kernel"].value.node == "a"


def test_the_loss_of_an_earlier_lease_says_nothing() -> None:
    bench = Bench().lead("kernel")
    grants = len(bench.all(GrantLease))
    bench.feed(events.LeaseLost(bench.state.lease_id + 1))
    bench.live(0.2)
    assert len(bench.all(GrantLease)) == grants


# --- it is a function


def test_a_step_changes_nothing_but_its_result() -> None:
    bench = Bench().lead("kernel")
    before = msgspec.structs.replace(bench.state)
    event = events.Release("kernel", bench.token("kernel"), Reason.RELEASED)
    first = core.step(bench.state, event, bench.now)
    assert bench.state == before
    assert core.step(bench.state, event, bench.now) == first
    assert first[0] != before


moves = st.one_of(
    st.sampled_from(["answer", "lose", "commit and lose", "watch", "other beats", "other ends", "refuse page", "lose lease"]),
    st.sampled_from([
        events.Campaign("kernel"), events.Campaign("app:a", delay_s=0.1), events.Withdraw("app:a"), events.CancelSwitchover("app:a"),
        events.Members(frozenset({"a"})), events.Members(frozenset({"a", "b"})), events.Pause(on=True), events.Pause(on=False),
        events.Leave(), events.Applied(3), events.Propose(1, 7, (), ()),
        "release", "close", "switch", "restart",
    ]),
    st.floats(0.01, 4.0),
)  # fmt: skip


@given(st.lists(st.tuples(moves, st.integers(0, 3)), max_size=40))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_no_sequence_of_events_breaks_it_or_makes_it_spin(script: list[tuple[object, int]]) -> None:
    bench = Bench()
    other: Other | None = Other(bench.store)
    bench.start().settle()
    for move, which in script:
        match move:
            case "answer" | "lose" | "commit and lose" if bench.open:
                action = bench.open[which % len(bench.open)]
                if move == "answer" or not hasattr(action, "transaction"):
                    bench.answer(action)
                else:
                    bench.lose_answer(action, commits=move == "commit and lose")
            case "watch":
                bench.watch()
            case "other beats" if other is not None and "sess/b" in bench.store.records:
                other.beat()
            case "other ends" if "sess/b" in bench.store.records and other is not None:
                other.end()
                other = None
            case "refuse page":
                bench.feed(events.PageRefused())
            case "lose lease":
                bench.store.revoke(bench.state.lease_id)
                bench.feed(events.LeaseLost(bench.state.lease_id))
            case "release" | "close" if "app:a" in bench.state.terms:
                token = bench.token("app:a")
                bench.feed(
                    events.Release("app:a", token, Reason.RELEASED) if move == "release" else events.Close("app:a", token)
                )
            case "switch":
                bench.feed(events.Switchover("app:a", "b", "at-b", "op", Reason.SWITCHOVER, bench.now + which))
            case "restart":
                bench.restart()
            case float():
                bench.pass_time(move)
            case msgspec.Struct():
                bench.feed(move)
    held = {name: record.value for name, record in bench.store.records.items() if name.startswith("epoch/")}
    for resource, term in bench.page.terms.items():
        assert held[f"epoch/{resource}"].epoch >= term.epoch
    if not bench.state.leaving:
        bench.feed(events.Pause(on=False))
        bench.live(2 * W)
        assert bench.state.session is not None
        assert bench.store.commit(bench.store_end()) is Outcome.COMMITTED


def test_an_offer_that_was_taken_back_is_forgotten_and_one_that_was_made_is_not() -> None:
    """Else the next change would be said to have lasted since then."""

    def seen(state: Leadership, rev: int, epoch: int, *, intent: bool) -> Leadership:
        offered = {"kernel": Record(IntentRecord(5, "a", "at-a", "op"), rev, rev)} if intent else {}
        epochs = {"kernel": Record(EpochRecord(epoch, "b", 9, 3.0, held=True), 1, rev)}
        step = Step(state, float(rev))
        takeover.look(step, View(rev=rev, epochs=epochs, intents=offered))
        return step.result()[0]

    offer = seen(Leadership(Config("a", "at-a", FAST)), 1, 5, intent=True)
    assert offer.offered["kernel"] == Offer(5, 1.0)
    assert seen(offer, 2, 5, intent=False).offered == {}
    assert seen(offer, 2, 6, intent=False).offered["kernel"] == Offer(5, 1.0), "it is of the handover that was just made"
    again = seen(seen(offer, 2, 5, intent=False), 3, 5, intent=True)
    assert again.offered["kernel"] == Offer(5, 3.0)
