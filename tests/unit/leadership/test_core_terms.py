"""Terms: opened, closed, released, handed over; and what an unknown outcome allows."""

from __future__ import annotations

import pytest

from piccolod.leadership import events
from piccolod.leadership.actions import Closing, Ended, Opened, Over, Proposed, Prove, SwitchoverFailed
from piccolod.leadership.events import Memory, PageState, PageTerm
from piccolod.leadership.keys import IntentRecord
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Goal, Phase
from piccolod.leadership.timing import FAST
from piccolod.leadership.transactions import Compare, Field, Kind, Outcome, Put
from tests.unit.leadership.bench import Bench, Other, kinds

APP = "app:a"


def release(bench: Bench, reason: Reason = Reason.UNHEALTHY) -> list[object]:
    return [*bench.feed(events.Release(APP, bench.token(APP), reason))]


def switch(bench: Bench, to: str = "b", within_s: float = 2.0) -> None:
    bench.feed(events.Switchover(APP, to, f"at-{to}", "op-1", Reason.SWITCHOVER, bench.now + within_s))


def handing_over() -> tuple[Bench, Other]:
    """A bench that leads the app and has sent HANDOVER."""
    bench = Bench()
    other = Other(bench.store)
    bench.lead(APP)
    switch(bench)
    bench.settle_until(Kind.HANDOVER)
    return bench, other


def restarted(bench: Bench) -> Bench:
    again = Bench(bench.store)
    again.now = bench.now
    return again.start(bench.page, bench.state.remembered, (APP,))


# --- release


def test_closing_is_on_the_page_before_the_stop_and_the_release_comes_after_its_proof() -> None:
    bench = Bench().lead(APP)
    assert kinds(release(bench)) == ["WritePage", "Prove", "Closing"]
    assert bench.page.terms[APP].closing
    bench.live(1.0, proofs=False)
    assert bench.state.view.epochs[APP].value.held
    bench.answer(bench.proof())
    assert APP in bench.page.terms
    done = bench.answer(bench.sent(Kind.RELEASE))
    assert kinds(done)[:2] == ["WritePage", "Over"]
    assert APP not in bench.page.terms
    assert bench.store.records["hist/app:a/1/end"].value.reason is Reason.UNHEALTHY


def test_the_proof_of_an_earlier_stop_says_nothing_for_a_later_one() -> None:
    bench = Bench()
    Other(bench.store)
    bench.lead(APP)
    switch(bench)
    bench.settle(proofs=False)
    first = bench.proof()
    bench.feed(events.CancelSwitchover(APP))
    bench.settle(proofs=False)
    assert bench.state.terms[APP].phase is Phase.OPEN
    release(bench)
    bench.answer(first)
    assert bench.state.terms[APP].phase is Phase.CLOSING
    assert not bench.sends(Kind.RELEASE)


@pytest.mark.parametrize("commits", [True, False])
def test_a_release_with_unknown_outcome_stays_closing_and_is_sent_again(commits: bool) -> None:
    bench = Bench().lead(APP)
    release(bench)
    bench.answer(bench.proof())
    bench.lose_answer(bench.sent(Kind.RELEASE), commits=commits)
    assert bench.page.terms[APP].closing
    bench.live(1.0)
    assert bench.last(Over) == Over(APP, bench.last(Over).token, Ended.RELEASED)
    assert not bench.state.view.epochs[APP].value.held
    assert len(bench.all(Opened)) == 1


def test_a_released_term_is_not_opened_again_by_a_view_that_is_older() -> None:
    bench = Bench().lead(APP)
    older = bench.store.since(0)
    release(bench)
    bench.answer(bench.proof())
    bench.answer(bench.sent(Kind.RELEASE))
    header = events.Header(77, bench.state.view.rev + 1)
    bench.feed(events.Watched(bench.state.view.rev, header, older))
    bench.feed(events.Tick(bench.now))
    assert APP not in bench.state.terms


def test_the_answer_to_a_claim_that_was_overtaken_by_its_release_opens_nothing() -> None:
    bench = Bench().start()
    bench.settle()
    bench.feed(events.Campaign(APP))
    claim = bench.sent(Kind.CLAIM)
    bench.store.commit(claim.transaction)
    late = events.Answered(claim.id, Outcome.COMMITTED, bench.store.header)
    bench.watch()
    assert APP in bench.state.terms, "the view shows what the answer would say"
    release(bench)
    bench.answer(bench.proof())
    bench.answer(bench.sent(Kind.RELEASE))
    bench.feed(late)
    assert APP not in bench.state.terms
    assert APP not in bench.page.terms


def test_a_request_that_names_another_term_does_nothing() -> None:
    bench = Bench().lead(APP)
    bench.feed(events.Release(APP, bench.token(APP) - 1, Reason.RELEASED))
    bench.feed(events.Close(APP, bench.token(APP) + 1))
    assert not bench.all(Closing)


def test_a_term_that_is_only_closed_stays_held_until_it_is_released() -> None:
    bench = Bench().lead(APP)
    bench.feed(events.Close(APP, bench.token(APP)))
    bench.live(3.0)
    assert bench.page.terms[APP].closing
    release(bench)
    bench.settle()
    assert bench.last(Over).why is Ended.RELEASED


# --- closing survives restarts


def test_a_closing_term_is_closed_by_the_next_process_and_never_opened() -> None:
    bench = Bench().lead(APP)
    release(bench)
    again = restarted(bench)
    assert again.all(Closing)
    assert not again.all(Opened)
    again.settle(proofs=False)
    assert again.state.view.epochs[APP].value.held
    again.settle()
    assert again.last(Over).why is Ended.RELEASED
    assert not again.all(Opened)


def test_a_handover_goes_on_in_the_next_process() -> None:
    bench, _ = handing_over()
    again = restarted(bench)
    again.settle()
    assert again.last(Over).why is Ended.HANDED_OVER
    assert again.state.view.epochs[APP].value.node == "b"


def test_a_handover_whose_target_is_gone_after_a_restart_is_released_not_opened() -> None:
    bench, other = handing_over()
    other.end()
    again = restarted(bench)
    again.settle()
    assert again.last(Over).why is Ended.RELEASED
    assert not again.all(Opened)


# --- switchover


def test_a_switchover_ends_this_term_and_begins_the_targets_at_one_revision() -> None:
    bench, other = handing_over()
    assert bench.page.terms[APP].closing
    bench.settle()
    epoch = bench.store.records["epoch/app:a"].value
    assert (epoch.node, epoch.epoch, epoch.sid, epoch.held) == ("b", 2, other.sid, True)
    assert bench.last(Over).why is Ended.HANDED_OVER
    assert bench.store.records["lead/app:a"].value.address == "at-b"
    assert bench.store.records["hist/app:a/2"].value.reason is Reason.SWITCHOVER


def test_a_target_opens_on_seeing_its_own_token() -> None:
    source = Bench()
    target = Bench(source.store, node="b").start()
    target.settle()
    source.lead(APP)
    switch(source)
    source.settle()
    target.live(0.6)
    opened = target.last(Opened)
    assert (opened.resource, opened.epoch, opened.reason) == (APP, 2, Reason.SWITCHOVER)
    assert opened.token == source.store.records["epoch/app:a"].mod


@pytest.mark.parametrize("committed", [True, False])
def test_after_an_unknown_handover_nothing_opens_before_the_outcome_is_certain(committed: bool) -> None:
    bench, _ = handing_over()
    late = bench.sent(Kind.HANDOVER)
    bench.lose_answer(late, commits=committed)
    bench.feed(events.CancelSwitchover(APP))
    assert bench.state.terms[APP].phase is Phase.STOPPED
    bench.live(1.0)
    if committed:
        assert bench.last(Over).why is Ended.HANDED_OVER
        assert len(bench.all(Opened)) == 1
    else:
        assert bench.state.terms[APP].phase is Phase.OPEN
        assert bench.store.commit(late.transaction) is Outcome.REFUSED, "it can not commit any more"


@pytest.mark.parametrize("commits", [True, False])
def test_an_abort_with_unknown_outcome_opens_only_what_is_certainly_ours(commits: bool) -> None:
    bench, _ = handing_over()
    late = bench.sent(Kind.HANDOVER)
    bench.lose_answer(late, commits=False)
    bench.feed(events.CancelSwitchover(APP))
    bench.now += FAST.retry_s
    bench.tick()
    bench.lose_answer(bench.sent(Kind.ABORT), commits=commits)
    assert bench.state.terms[APP].phase is Phase.STOPPED
    bench.live(1.0)
    assert bench.state.terms[APP].phase is Phase.OPEN
    assert bench.store.commit(late.transaction) is Outcome.REFUSED


@pytest.mark.parametrize("commits", [True, False])
def test_an_intent_with_unknown_outcome_is_found_or_sent_again(commits: bool) -> None:
    bench = Bench()
    Other(bench.store)
    bench.lead(APP)
    switch(bench)
    bench.lose_answer(bench.sent(Kind.INTENT), commits=commits)
    assert bench.state.terms[APP].phase is Phase.OPEN
    bench.live(1.0)
    assert bench.last(Over).why is Ended.HANDED_OVER


def test_a_switchover_that_is_not_done_in_time_is_taken_back_in_the_same_term() -> None:
    bench = Bench()
    Other(bench.store)
    bench.lead(APP)
    token = bench.token(APP)
    switch(bench, within_s=1.0)
    bench.live(1.5, proofs=False)
    assert bench.last(SwitchoverFailed).op == "op-1"
    assert (bench.last(Opened).token, bench.last(Opened).epoch) == (token, 1)
    assert not bench.page.terms[APP].closing
    assert "intent/app:a" not in bench.store.records


def test_a_target_that_began_anew_gets_nothing() -> None:
    bench, other = handing_over()
    other.end()
    bench.settle()
    assert bench.state.terms[APP].phase is Phase.OPEN
    assert bench.all(SwitchoverFailed)


@pytest.mark.parametrize("why", ["nobody", "itself", "not led", "paused", "closing"])
def test_a_switchover_that_can_not_be_is_refused_at_once(why: str) -> None:
    bench = Bench()
    Other(bench.store)
    bench.lead(APP)
    if why == "paused":
        bench.feed(events.Pause(on=True))
    if why == "closing":
        release(bench)
    to = {"nobody": "c", "itself": "a"}.get(why, "b")
    resource = "app:other" if why == "not led" else APP
    bench.feed(events.Switchover(resource, to, "", "op-1", Reason.SWITCHOVER, bench.now + 2))
    assert bench.last(SwitchoverFailed).resource == resource
    assert not bench.sends(Kind.INTENT)


def test_a_release_in_the_middle_of_a_switchover_ends_the_term_for_certain() -> None:
    bench, _ = handing_over()
    release(bench)
    bench.lose_answer(bench.sent(Kind.HANDOVER), commits=False)
    assert bench.state.terms[APP].goal is Goal.RELEASE
    bench.live(1.0)
    assert bench.last(Over).why is Ended.RELEASED
    assert len(bench.all(Opened)) == 1


def test_an_intent_of_an_earlier_epoch_is_no_intent() -> None:
    bench = Bench()
    Other(bench.store)
    bench.lead(APP)
    bench.store._apply([("intent/app:a", IntentRecord(0, "b", "at-b", "old"), 0)], [])
    release(bench)
    again = restarted(bench)
    again.settle()
    assert again.last(Over).why is Ended.RELEASED


# --- writes of the kernel's leader


def test_a_write_goes_out_under_the_very_token_that_its_gate_gave() -> None:
    bench = Bench().lead("kernel")
    token = bench.token("kernel")
    bench.feed(events.Propose(1, token - 1, (), (Put("ctl/head", 0),)))
    assert bench.last(Proposed) == Proposed(1, Outcome.REFUSED, 0)
    bench.feed(events.Propose(2, token, (Compare("ctl/head", Field.MOD, 0),), (Put("ctl/head", 0),)))
    assert Compare("epoch/kernel", Field.MOD, token) in bench.sent(Kind.PROPOSAL).transaction.compares
    bench.answer(bench.sent(Kind.PROPOSAL))
    assert bench.last(Proposed) == Proposed(2, Outcome.COMMITTED, bench.store.rev)


def test_a_write_without_answer_is_reported_unknown_and_never_sent_again() -> None:
    bench = Bench().lead("kernel")
    bench.feed(events.Propose(1, bench.token("kernel"), (), (Put("ctl/head", 0),)))
    bench.lose_answer(bench.sent(Kind.PROPOSAL), commits=True)
    assert bench.last(Proposed) == Proposed(1, Outcome.UNKNOWN, 0)
    bench.live(1.0)
    assert len([action for action in bench.all(Proposed) if action.proposal == 1]) == 1


def test_nothing_is_written_while_the_kernel_is_closing() -> None:
    bench = Bench().lead("kernel")
    bench.feed(events.Close("kernel", bench.token("kernel")))
    bench.feed(events.Propose(1, bench.token("kernel"), (), ()))
    assert bench.last(Proposed).outcome is Outcome.REFUSED


def test_a_term_that_another_holds_in_the_store_leaves_the_page() -> None:
    bench = Bench().lead(APP)
    bench.store._apply([("epoch/app:a", bench.store.records["epoch/app:a"].value, 0)], [])
    bench.watch()
    assert APP not in bench.page.terms
    assert bench.last(Over).why is Ended.SUPERSEDED
    assert bench.last(Prove).resource == APP


def test_a_memory_without_page_is_a_reboot() -> None:
    bench = Bench().start(None, Memory(77, 2, 1), ())
    bench.settle()
    assert bench.state.session is not None
    assert isinstance(bench.page, PageState)
    assert PageTerm not in map(type, bench.page.terms.values())


# --- a watch that loses things without a trace


def test_a_watch_that_lost_our_claim_takes_nothing_from_us() -> None:
    bench = Bench().start()
    bench.settle()
    bench.feed(events.Campaign(APP))
    bench.answer(bench.sent(Kind.CLAIM))
    bench.feed(events.Watched(bench.state.view.rev, bench.store.header, ()))
    assert APP in bench.page.terms
    bench.live(3.0)
    assert not bench.all(Over)


def test_half_of_a_handover_opens_nothing_again() -> None:
    bench, _ = handing_over()
    bench.lose_answer(bench.sent(Kind.HANDOVER), commits=True)
    bench.feed(events.CancelSwitchover(APP))
    changes = bench.store.since(bench.state.view.rev)
    half = tuple(change for change in changes if change.key == "intent/app:a")
    assert half
    bench.feed(events.Watched(bench.state.view.rev, bench.store.header, half))
    bench.now += FAST.retry_s
    bench.tick()
    assert bench.state.terms[APP].phase is Phase.STOPPED
    bench.live(1.0)
    assert bench.last(Over).why is Ended.HANDED_OVER
    assert len(bench.all(Opened)) == 1
