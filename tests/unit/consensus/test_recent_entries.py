"""Entries that the watch brought: a run without a gap, and no larger than it may be."""

from __future__ import annotations

from piccolod.protocol.log import SealedEntry
from services.consensus.recent_entries import RecentEntries


def entry(rev: int, size_bytes: int = 10) -> SealedEntry:
    return SealedEntry(rev, b"header", b"nonce", bytes(size_bytes), b"digest")


def revs(recent: RecentEntries, after: int, limit: int = 256, limit_bytes: int = 1 << 20) -> list[int]:
    return [each.rev for each in recent.after(after, limit, limit_bytes)]


def kept(*entries: SealedEntry) -> RecentEntries:
    recent = RecentEntries()
    for each in entries:
        recent.put(each)
    return recent


def test_what_comes_after_a_rev_is_given_in_order_and_nothing_where_the_next_one_is_not_there() -> None:
    recent = kept(*(entry(rev) for rev in range(5, 9)))
    assert revs(recent, 4) == [5, 6, 7, 8]
    assert revs(recent, 6) == [7, 8]
    assert revs(recent, 3) == revs(recent, 8) == revs(RecentEntries(), 0) == []


def test_limits_hold_and_one_is_given_at_least() -> None:
    recent = kept(*(entry(rev) for rev in range(1, 9)))
    assert revs(recent, 2, limit=3) == [3, 4, 5]
    assert revs(recent, 2, limit_bytes=25) == [3, 4]
    assert revs(recent, 2, limit_bytes=1) == [3]


def test_a_gap_begins_a_new_run_and_so_does_what_goes_back() -> None:
    recent = kept(entry(1), entry(2), entry(4))
    assert (revs(recent, 1), revs(recent, 3)) == ([], [4])
    recent.put(entry(4))
    assert revs(recent, 3) == [4]


def test_old_ones_make_room_and_the_newest_stays_however_large() -> None:
    recent = kept(*(entry(rev) for rev in range(1, 200)))
    assert revs(recent, 134) == [] and len(revs(recent, 135)) == 64
    recent = kept(*(entry(rev, 384 << 10) for rev in range(1, 6)))
    assert revs(recent, 2) == [] and revs(recent, 3, limit_bytes=1 << 30) == [4, 5]
    assert revs(kept(entry(1, 2 << 20)), 0) == [1]
