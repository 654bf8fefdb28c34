"""The broker's memory: sequences, last values, and what a sender that invents keys can do to others."""

from __future__ import annotations

from broker.cache import LastValues


def test_each_topic_counts_for_itself() -> None:
    values = LastValues()
    assert [values.next_seq("a", topic, 0.0) for topic in ("x/|", "y/|", "x/|")] == [1, 1, 2]


def test_a_snapshot_has_the_retained_values_and_every_sequence_below_its_prefixes() -> None:
    values = LastValues()
    for topic in ("x/1|", "x/2|", "y/|"):
        values.next_seq("a", topic, 0.0)
    values.keep("x/1|", (b"x/1|", b"h", b"b"))
    assert values.snapshot(("x/",)) == ({"x/1|": 1, "x/2|": 1}, ((b"x/1|", b"h", b"b"),))
    assert values.snapshot(()) == ({}, ())


def test_a_sender_that_invents_keys_loses_its_own_topics_and_no_other() -> None:
    values = LastValues(topics_a_sender=3)
    values.next_seq("store", "LockStateChanged/|", 0.0)
    values.keep("LockStateChanged/|", (b"", b"", b""))
    for number in range(10):
        values.next_seq("router.0", f"RouteChanged/{number}|", 0.0)
    last, frames = values.snapshot(("",))
    assert set(last) == {"LockStateChanged/|", "RouteChanged/7|", "RouteChanged/8|", "RouteChanged/9|"}
    assert len(frames) == 1


def test_a_topic_that_was_forgotten_goes_on_above_what_readers_have_seen() -> None:
    values = LastValues(topics_a_sender=1)
    for _ in range(7):
        values.next_seq("a", "x/|", 0.0)
    values.next_seq("a", "y/|", 0.0)
    assert values.next_seq("a", "x/|", 0.0) > 7


def test_the_beat_names_what_changed_of_late() -> None:
    values = LastValues()
    values.next_seq("a", "old/|", 1.0)
    values.next_seq("a", "new/|", 5.0)
    assert values.changed_since(3.0) == {"new/|": 1}
