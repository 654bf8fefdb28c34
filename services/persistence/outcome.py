"""What became of an append whose answer did not come: read off the head of the log. Pure.

An append compares the token and the head, and its entries are all there or none is. So an entry of ours at its rev is the
proof that it happened; another one there, or another token at the same revision of etcd, that it did not and never will. Else
it may happen yet.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from piccolod.protocol.log import Append, Head


class Verdict(Enum):
    COMMITTED = "committed"
    REFUSED = "refused"  # the log went on without it
    OVER = "over"  # the log stands where it stood, and the token is another one
    OPEN = "open"  # it may be written at any time, or be sent once more
    BEYOND = "beyond"  # the log went on: whether with it, the entry at its last rev tells


class Sent(msgspec.Struct, frozen=True):
    token: int
    head_rev: int
    head_digest: bytes
    last_rev: int
    last_digest: bytes

    @classmethod
    def of(cls, append: Append) -> Sent:
        last = append.entries[-1]
        return cls(append.token, append.head_rev, append.head_digest, last.rev, last.digest)


def judge(sent: Sent, head: Head) -> Verdict:
    if head.rev > sent.last_rev:
        return Verdict.BEYOND
    if head.rev == sent.last_rev:
        return Verdict.COMMITTED if head.digest == sent.last_digest else Verdict.REFUSED
    if head.rev != sent.head_rev or (head.rev and head.digest != sent.head_digest):  # an empty log has no digest
        return Verdict.REFUSED
    return Verdict.OPEN if head.token == sent.token else Verdict.OVER
