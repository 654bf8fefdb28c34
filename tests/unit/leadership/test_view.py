from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from piccolod.leadership import view
from piccolod.leadership.keys import AckRecord, EpochRecord, GenRecord, SessionRecord
from piccolod.leadership.view import Change, Record, View

GEN = Record(GenRecord(1, 7), 2, 2)


def session(create: int, mod: int) -> Record[SessionRecord]:
    return Record(SessionRecord(1, "boot", mod, 3.0), create, mod)


def epoch(mod: int, node: str, sid: int, *, held: bool = True) -> Record[EpochRecord]:
    return Record(EpochRecord(1, node, sid, 3.0, held), mod, mod)


BEFORE = view.read(10, {"gen": GEN, "sess/a": session(3, 9), "epoch/kernel": epoch(5, "a", 3), "ctl/head": Record(1, 6, 6)})


def test_a_read_gives_all_that_leadership_needs() -> None:
    assert (BEFORE.rev, BEFORE.sid("a"), BEFORE.gen) == (10, 3, GEN)
    assert BEFORE.epochs["kernel"].mod == 5


def test_a_batch_that_begins_where_the_view_ends_advances_it() -> None:
    after = view.advance(BEFORE, 10, 12, [Change("sess/a", 11, session(3, 11)), Change("sess/b", 12, session(12, 12))])
    assert after is not None
    assert (after.rev, after.sid("b"), after.sessions["a"].mod) == (12, 12, 11)
    assert BEFORE.sid("b") == 0


def test_a_gap_is_refused_and_what_is_old_changes_nothing() -> None:
    assert view.advance(BEFORE, 11, 12, [Change("sess/a", 12, None)]) is None
    assert view.advance(BEFORE, 7, 9, [Change("sess/a", 9, None)]) is BEFORE


def test_a_batch_that_overlaps_adds_only_what_is_new() -> None:
    after = view.advance(BEFORE, 7, 11, [Change("sess/a", 8, None), Change("sess/b", 11, session(11, 11))])
    assert after is not None
    assert (after.sid("a"), after.sid("b")) == (3, 11)


def test_only_what_is_more_than_a_heartbeat_changes_the_shape() -> None:
    beat = view.advance(BEFORE, 10, 11, [Change("sess/a", 11, session(3, 11))])
    assert beat is not None
    assert beat.shape == BEFORE.shape
    assert view.same_shape(beat, BEFORE)
    for change in (
        Change("sess/a", 11, session(11, 11)), Change("sess/a", 11, None), Change("gen", 11, Record(GenRecord(2, 7), 2, 11)),
        Change("ack/a", 11, Record(AckRecord(("a", "b")), 11, 11)), Change("epoch/kernel", 11, epoch(11, "a", 3, held=False)),
    ):  # fmt: skip
        other = view.advance(BEFORE, 10, 11, [change])
        assert other is not None
        assert other.shape != BEFORE.shape, change
        assert not view.same_shape(other, BEFORE), change


def test_who_holds_it() -> None:
    records = {
        "sess/a": session(3, 9), "epoch/held": epoch(5, "a", 3), "epoch/released": epoch(5, "a", 3, held=False),
        "epoch/former": epoch(5, "a", 2), "epoch/gone": epoch(5, "b", 4),
    }  # fmt: skip
    seen = view.read(10, records)
    assert not seen.vacant("held")
    assert all(seen.vacant(resource) for resource in ("never", "released", "former", "gone"))


def test_only_those_whom_the_owner_named_may_take_from_it() -> None:
    seen = view.read(10, {"ack/a": Record(AckRecord(("a", "b")), 4, 4)})
    assert seen.may_take_from("a", "b")
    assert not seen.may_take_from("a", "c")
    assert not seen.may_take_from("b", "a")
    assert seen.may_take_from("b", "b")


keys = st.sampled_from(["sess/a", "sess/b", "epoch/kernel", "gen", "hist/kernel/1"])


@given(st.lists(st.tuples(keys, st.booleans()), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_batches_of_any_cut_give_what_a_read_gives(history: list[tuple[str, bool]], one: int, other: int) -> None:
    records: dict[str, Record[object]] = {}
    changes: list[Change] = []
    for rev, (key, put) in enumerate(history, start=1):
        if put:
            known = records.get(key)
            records[key] = Record(EpochRecord(rev, "a", 1, 3.0, held=True), known.create if known else rev, rev)
            changes.append(Change(key, rev, records[key]))
        elif records.pop(key, None) is not None:
            changes.append(Change(key, rev, None))
    last = len(history)
    first, second = sorted((min(one, last), min(other, last)))
    seen: View | None = View()
    for after, rev in ((0, first), (max(0, first - 2), second), (second, last)):
        assert seen is not None
        seen = view.advance(seen, after, rev, [change for change in changes if after < change.rev <= rev])
    assert seen is not None
    assert view.same_shape(seen, view.read(last, records))
    assert seen.rev == last
