"""The session: how it begins, what keeps it, what ends it, and what must happen before the next."""

from __future__ import annotations

import pytest

from piccolod import clock
from piccolod.leadership import core, events
from piccolod.leadership.actions import Alarm, Ended, Opened, Proposed, Prove, Read, Remember, SessionOver, WritePage
from piccolod.leadership.events import Answered, Header, Memory, PageState, PageTerm
from piccolod.leadership.keys import AckRecord, GenRecord
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Life
from piccolod.leadership.timing import FAST, SUPERVISOR_STALE_S
from piccolod.leadership.transactions import Kind, Outcome
from tests.unit.leadership.bench import Bench, Other, kinds, new_store

MEMORY = Memory(77, 2, 1)


def page(bench: Bench, *, hard_in_s: float = 2.0, gen: int = 1, **terms: PageTerm) -> PageState:
    hard_at = bench.now + hard_in_s
    return PageState(gen, 3, 1, hard_at - FAST.grace_s, hard_at, terms)


def over(bench: Bench) -> Ended:
    assert bench.state.life is Life.OVER
    assert (bench.page.sid, bench.page.terms, bench.page.hard_at) == (0, {}, 0.0)
    return bench.last(SessionOver).why


# --- deadlines


def test_deadlines_count_from_the_send_of_the_heartbeat_not_from_its_answer() -> None:
    bench = Bench().lead("kernel")
    bench.now += FAST.beat_s
    bench.tick()
    sent_at = bench.now
    bench.now += 0.25
    bench.answer(bench.sent(Kind.HEARTBEAT))
    assert (bench.page.soft_at, bench.page.hard_at) == (FAST.soft_at(sent_at), FAST.hard_at(sent_at))


def test_a_late_answer_never_revives_a_session() -> None:
    bench = Bench().lead("kernel")
    bench.now += FAST.beat_s
    bench.tick()
    bench.now = bench.page.hard_at
    bench.answer(bench.sent(Kind.HEARTBEAT))
    assert over(bench) is Ended.DEADLINE


def test_a_heartbeat_without_answer_moves_no_deadline_and_the_next_comes_soon() -> None:
    bench = Bench().lead("kernel")
    hard_at = bench.page.hard_at
    bench.now += FAST.beat_s
    bench.tick()
    bench.now += FAST.rpc_s
    bench.lose_answer(bench.sent(Kind.HEARTBEAT), commits=True)
    assert bench.page.hard_at == hard_at
    assert bench.sends(Kind.HEARTBEAT)


def test_heartbeats_stop_while_the_supervisor_does_not_act() -> None:
    bench = Bench().lead("kernel")
    bench.supervisor_acts = False
    bench.pass_time(1.5)
    assert not bench.sends(Kind.HEARTBEAT)
    bench.supervisor_acts = True
    bench.live(0.2)
    assert bench.page.hard_at > bench.now + 2.0


def test_a_supervisor_that_missed_a_beat_still_counts_as_acting() -> None:
    bench = Bench().lead("kernel")
    bench.now += FAST.beat_s
    bench.feed(events.Tick(bench.now - SUPERVISOR_STALE_S + 0.001))
    assert bench.sends(Kind.HEARTBEAT)


def test_the_page_that_refuses_ends_the_session() -> None:
    bench = Bench().lead("kernel")
    bench.feed(events.PageRefused())
    assert over(bench) is Ended.PAGE_REFUSED


# --- the end


def test_a_session_that_is_gone_from_the_store_is_over_at_once_by_the_answer_or_by_the_view() -> None:
    for notice in ("answer", "view"):
        bench = Bench().lead("kernel")
        bench.store.commit(bench.store_end())
        if notice == "answer":
            bench.now += FAST.beat_s
            bench.tick()
            bench.answer(bench.sent(Kind.HEARTBEAT))
        else:
            bench.watch()
        assert over(bench) is Ended.SESSION_GONE, notice


def test_no_end_and_no_new_session_before_everything_is_proven_stopped() -> None:
    bench = Bench().lead("kernel", "app:a")
    old = bench.state.view.sid("a")
    bench.pass_time(3.0)
    assert over(bench) is Ended.DEADLINE
    bench.settle(proofs=False)
    bench.live(5.0, proofs=False)
    first, second = [action for action in bench.open if isinstance(action, Prove)]
    assert {first.resource, second.resource} == {"kernel", "app:a"}
    bench.answer(first)
    bench.live(1.0, proofs=False)
    assert bench.store.records["sess/a"].create == old
    bench.answer(second)
    bench.settle()
    assert bench.store.records["sess/a"].create > old
    assert bench.state.life is Life.OPEN


def test_the_page_drops_the_session_before_its_effects_are_asked_for_and_before_it_ends_in_the_store() -> None:
    bench = Bench().lead("app:a")
    del bench.done[:]
    bench.pass_time(2.5)
    asked = [kind for kind in kinds(bench.done) if kind in ("WritePage", "Prove", "end")]
    assert asked == ["WritePage", "Prove"]
    bench.settle()
    assert kinds(bench.done).index("end") > kinds(bench.done).index("Prove")


def test_a_session_of_an_earlier_boot_is_ended_at_once_for_its_effects_died_with_it() -> None:
    store = new_store()
    before = Bench(store).lead("kernel")
    old = before.state.view.sid("a")
    bench = Bench(store).start(None, before.state.remembered)
    bench.settle()
    assert bench.store.records["sess/a"].create > old


def test_a_session_whose_deadline_passed_before_its_answer_came_is_never_opened() -> None:
    bench = Bench().start()
    bench.settle_until(Kind.SESSION)
    send = bench.sent(Kind.SESSION)
    bench.now += FAST.span_s
    bench.answer(send)
    assert bench.state.session is None
    bench.live(0.3)
    assert bench.state.session is not None
    assert bench.state.session.hard_at > bench.now


def test_leaving_releases_everything_then_ends_the_session_for_good() -> None:
    bench = Bench().lead("kernel", "app:a")
    bench.feed(events.Leave())
    bench.settle()
    assert bench.state.life is Life.LEFT
    assert "sess/a" not in bench.store.records
    assert not bench.state.view.epochs["kernel"].value.held
    assert core.wake_at(bench.state) == float("inf")


# --- a restart within the term


def test_a_restart_goes_on_with_the_session_and_the_terms_of_the_page() -> None:
    bench = Bench().lead("kernel")
    again = Bench(bench.store)
    again.now = bench.now + 0.3
    again.start(bench.page, bench.state.remembered, ("kernel",))
    assert [(opened.resource, opened.token) for opened in again.all(Opened)] == [("kernel", bench.token("kernel"))]
    assert not again.all(WritePage), "the deadlines stay those of the page"
    again.live(5.0)
    assert again.page.sid == bench.page.sid
    assert again.page.terms == bench.page.terms


@pytest.mark.parametrize("why", ["deadline", "gen", "no session", "no memory"])
def test_a_restart_resumes_nothing_that_is_not_certain(why: str) -> None:
    bench = Bench()
    shown = page(bench, hard_in_s=0.0 if why == "deadline" else 2.0, gen=2 if why == "gen" else 1, kernel=PageTerm(4, 1, False))
    if why == "no session":
        shown = PageState(1, 0, 0, 0.0, 0.0, {})
    bench.start(shown, None if why == "no memory" else MEMORY, ("kernel", "app:a"))
    assert (bench.page.sid, bench.page.terms) == (0, {})
    assert {proof.resource for proof in bench.all(Prove)} == {"kernel", "app:a"}
    bench.settle(proofs=False)
    assert not bench.sends(Kind.SESSION)
    assert "sess/a" not in bench.store.records


def test_what_lives_here_without_a_term_is_proven_stopped_before_the_resumed_session_may_end() -> None:
    bench = Bench().lead("kernel")
    again = Bench(bench.store)
    again.now = bench.now
    again.start(bench.page, bench.state.remembered, ("kernel", "app:left-over"))
    assert [proof.resource for proof in again.all(Prove)] == ["app:left-over"]


# --- a node alone, and growing


def test_the_terms_of_a_node_alone_do_not_end_with_the_store() -> None:
    bench = Bench(members=("a",)).lead("kernel")
    assert bench.page.hard_at == clock.FOREVER
    bench.pass_time(1000.0)
    assert bench.state.life is Life.OPEN


def test_a_node_alone_that_restarts_while_the_store_is_gone_goes_on() -> None:
    bench = Bench(members=("a",)).lead("kernel")
    again = Bench(bench.store, members=("a",))
    again.start(bench.page, bench.state.remembered, ("kernel",))
    again.pass_time(1000.0)
    assert again.state.life is Life.OPEN
    assert "kernel" in again.state.terms


def test_deadlines_are_on_the_page_before_anyone_is_named_who_could_take_over() -> None:
    bench = Bench(members=("a",)).lead("kernel")
    del bench.done[:]
    bench.feed(events.Members(frozenset({"a", "b"})))
    assert kinds(bench.done) == ["WritePage", "ack"]
    assert bench.page.hard_at < clock.FOREVER
    assert bench.page.hard_at > bench.now
    bench.pass_time(3.0)
    assert bench.state.life is Life.OVER


def test_growing_waits_for_a_heartbeat_that_is_fresh() -> None:
    bench = Bench(members=("a",)).lead("kernel")
    bench.pass_time(100.0)
    bench.feed(events.Members(frozenset({"a", "b"})))
    assert not bench.sends(Kind.ACK)
    assert bench.page.hard_at == clock.FOREVER
    bench.settle()
    bench.live(1.0)
    assert bench.store.records["ack/a"].value.nodes == ("a", "b")
    assert bench.now < bench.page.hard_at < clock.FOREVER


@pytest.mark.parametrize("commits", [True, False])
def test_a_list_of_takers_with_unknown_outcome_keeps_the_deadlines(commits: bool) -> None:
    bench = Bench(members=("a",)).lead("kernel")
    bench.feed(events.Members(frozenset({"a", "b"})))
    bench.lose_answer(bench.sent(Kind.ACK), commits=commits)
    bench.feed(events.Members(frozenset({"a"})))
    assert bench.page.hard_at < clock.FOREVER
    bench.live(2.0)
    assert bench.page.hard_at == clock.FOREVER
    assert bench.store.records["ack/a"].value.nodes == ("a",)


def test_a_node_that_restarts_while_it_grows_is_alone_again_once_that_is_certain() -> None:
    bench = Bench(members=("a",)).lead("kernel")
    bench.feed(events.Members(frozenset({"a", "b"})))
    late = bench.sent(Kind.ACK)
    again = Bench(bench.store, members=("a",))
    again.start(bench.page, bench.state.remembered, ("kernel",)).settle()
    assert again.page.hard_at == clock.FOREVER
    assert bench.store.commit(late.transaction) is Outcome.REFUSED, "it can not commit any more"


# --- is it the etcd that we knew


def test_an_answer_that_goes_back_behind_what_was_seen_when_it_was_asked_stops_everything() -> None:
    bench = Bench().lead("kernel")
    bench.now += FAST.beat_s
    bench.tick()
    send = bench.sent(Kind.HEARTBEAT)
    bench.open.remove(send)
    bench.feed(Answered(send.id, Outcome.COMMITTED, Header(77, bench.state.highest - 1)))
    assert over(bench) is Ended.RESTORED
    assert "restored" in bench.last(Alarm).text
    bench.settle()
    bench.live(10.0)
    assert not bench.state.viewed, "nothing is believed until an operator has spoken"
    bench.restart()
    bench.settle()
    bench.live(10.0)
    assert not bench.state.viewed, "not by the next process either, to which it may look as it was"


def test_an_older_answer_out_of_order_does_not_count() -> None:
    bench = Bench().lead("kernel")
    bench.live(1.0)
    bench.now = core.wake_at(bench.state)
    bench.tick()
    sent_at_rev = bench.state.highest
    send = bench.sent(Kind.HEARTBEAT) if bench.sends(Kind.HEARTBEAT) else bench.open[-1]
    Other(bench.store)
    bench.watch()
    assert bench.state.highest > sent_at_rev + 1
    bench.open.remove(send)
    if isinstance(send, Read):
        bench.feed(events.ReadAnswered(send.id, Header(77, sent_at_rev), {}))
    else:
        bench.feed(Answered(send.id, Outcome.COMMITTED, Header(77, sent_at_rev + 1)))
    assert bench.state.life is Life.OPEN


def test_a_write_that_makes_a_revision_that_was_seen_before_is_of_a_restored_etcd() -> None:
    """One revision was lost, and our own write is the first to make it again: nothing else would ever show it."""
    bench = Bench().lead("kernel")
    bench.now += FAST.beat_s
    bench.tick()
    send = bench.sent(Kind.HEARTBEAT)
    bench.open.remove(send)
    bench.feed(Answered(send.id, Outcome.COMMITTED, Header(77, bench.state.highest)))
    assert over(bench) is Ended.RESTORED


def test_an_answer_to_somebody_else_shows_a_restored_etcd_as_well() -> None:
    bench = Bench().lead("kernel")
    bench.feed(events.Overheard(Header(77, bench.state.highest), bench.state.highest))
    assert bench.state.life is Life.OPEN
    bench.feed(events.Overheard(Header(77, bench.state.highest - 1), bench.state.highest))
    assert over(bench) is Ended.RESTORED


def test_another_cluster_id_stops_everything_and_a_write_under_way_is_reported_unknown() -> None:
    bench = Bench().lead("kernel")
    bench.feed(events.Propose(9, bench.token("kernel"), (), ()))
    send = bench.sent(Kind.PROPOSAL)
    bench.open.remove(send)
    bench.feed(Answered(send.id, Outcome.COMMITTED, Header(78, 10_000)))
    assert over(bench) is Ended.RESTORED
    assert bench.last(Proposed) == Proposed(9, Outcome.UNKNOWN, 0)


@pytest.mark.parametrize(
    ("gen", "accepted"), [(GenRecord(2, 78), True), (GenRecord(2, 77), False), (GenRecord(1, 78), False), (None, False)]
)
def test_a_restored_etcd_is_believed_once_a_new_gen_names_it(gen: GenRecord | None, accepted: bool) -> None:
    bench = Bench().lead("kernel")
    records = dict(bench.store.records)
    for _ in range(3):  # so that a token was over that is beyond those which the restored one begins with
        bench.live(2.0)
        bench.feed(events.Release("kernel", bench.token("kernel"), Reason.RELEASED))
        bench.settle()
        bench.feed(events.Campaign("kernel"))
        bench.settle()
    bench.store.go_back(records, 5, 78)
    bench.live(3.0)
    assert over(bench) is Ended.RESTORED
    if gen is not None:
        bench.store.begin_anew(gen.gen)
        bench.store.records["gen"] = type(bench.store.records["gen"])(gen, 2, bench.store.rev)
    bench.live(5.0)
    assert (bench.state.life is Life.OPEN) is accepted
    assert (bench.last(Remember).memory.gen == 2) is accepted
    assert ("kernel" in bench.page.terms) is accepted


def test_what_was_seen_of_etcd_is_on_the_disk_before_a_term_opens_on_the_page() -> None:
    bench = Bench().start()
    bench.settle()
    bench.feed(events.Campaign("kernel"))
    done = bench.answer(bench.sent(Kind.CLAIM))
    assert kinds(done)[:3] == ["Remember", "WritePage", "Opened"]
    assert bench.last(Remember).memory.rev >= bench.token("kernel")


def test_a_watch_that_lost_the_list_of_takers_leaves_nobody_alone() -> None:
    bench = Bench(members=("a", "b")).start()
    bench.settle_until(Kind.SESSION)
    bench.store._apply([("ack/a", AckRecord(("a", "b")), 0)], [])  # of a session before this one
    bench.answer(bench.sent(Kind.SESSION))
    bench.feed(events.Watched(bench.state.view.rev, bench.store.header, ()))
    assert bench.page.hard_at < clock.FOREVER
    bench.live(2.0)
    assert all(action.page.hard_at < clock.FOREVER for action in bench.all(WritePage))
