"""What the head tells of an append whose answer did not come."""

from __future__ import annotations

import pytest

from piccolod.protocol.log import Head
from services.persistence.etcd_snapshot import BYTES, REVS, is_due
from services.persistence.outcome import Sent, Verdict, judge

OURS, THEIRS, BEFORE = b"o" * 32, b"t" * 32, b"b" * 32
SENT = Sent(token=7, head_rev=4, head_digest=BEFORE, last_rev=6, last_digest=OURS)


@pytest.mark.parametrize(
    ("rev", "digest", "token", "verdict"),
    [
        (6, OURS, 7, Verdict.COMMITTED),
        (6, OURS, 9, Verdict.COMMITTED),  # whoever leads now
        (6, THEIRS, 7, Verdict.REFUSED),
        (5, THEIRS, 7, Verdict.REFUSED),  # ours are all there or none is
        (4, THEIRS, 7, Verdict.REFUSED),
        (4, BEFORE, 7, Verdict.OPEN),
        (4, BEFORE, 9, Verdict.OVER),
        (4, BEFORE, 0, Verdict.OVER),  # nobody leads
        (7, OURS, 7, Verdict.BEYOND),
    ],
)
def test_the_head_tells(rev: int, digest: bytes, token: int, verdict: Verdict) -> None:
    assert judge(SENT, Head(rev=rev, digest=digest, token=token)) is verdict


def test_an_empty_log_has_no_digest() -> None:
    first = Sent(token=7, head_rev=0, head_digest=bytes(32), last_rev=1, last_digest=OURS)
    assert judge(first, Head(rev=0, digest=b"", token=7)) is Verdict.OPEN


@pytest.mark.parametrize(
    ("revs", "size_bytes", "full", "due"),
    [
        (0, 0, False, False),
        (0, 0, True, False),  # nothing to trim
        (REVS - 1, BYTES - 1, False, False),
        (REVS, 0, False, True),
        (1, BYTES, False, True),
        (1, 0, True, True),
    ],
)
def test_a_snapshot_is_due_by_revs_by_bytes_and_when_etcd_is_full(revs: int, size_bytes: int, full: bool, due: bool) -> None:
    assert is_due(revs, size_bytes, full) is due
