"""What an error of etcd means: whether the request was refused, whether another endpoint may take it, or nobody knows. Pure.

Texts are etcd's own (api/v3rpc/rpctypes/error.go), the same from 3.4 to 3.6; codes alone do not tell them apart.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from grpc import StatusCode
from msgspec import Struct

from piccolod.errors import (
    Busy,
    Conflict,
    Invalid,
    NotFound,
    OutcomeUnknown,
    PiccoloError,
    StoreFull,
    StoreUnavailable,
    TooLarge,
)


class Verdict(Enum):
    REFUSED = "refused"  # it was not done, and no other endpoint would
    ELSEWHERE = "elsewhere"  # this endpoint did not do it; another may
    UNKNOWN = "unknown"  # it may have been done, or may be done yet


class Failure(Struct, frozen=True):
    verdict: Verdict
    error: PiccoloError


class TransactionUnknown(OutcomeUnknown):
    """`refusal`: what to tell once it is proven that the write did not happen."""

    def __init__(self, refusal: PiccoloError) -> None:
        super().__init__(f"the outcome is unknown: {refusal.detail}", hint="read again before trying again")
        self.refusal = refusal


class LeaseLost(NotFound):
    """The lease has expired or was revoked; what hung on it is gone."""

    code = "lease_lost"


class Compacted(Conflict):
    """The revision that was asked for is not kept any more."""

    code = "compacted"


# What this endpoint says before it does anything. "leader changed" is not among them: it may come after a proposal.
_ELSEWHERE: Final = (
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: rpc not supported for learner",
    "etcdserver: too many requests",
)
# Refusals that pass by themselves: a learner that still copies, a voter that has just come.
_LATER: Final = ("in sync with leader", "unhealthy cluster", "not enough started members", "too many learner members")
_DEFINITE: Final = (
    StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION, StatusCode.NOT_FOUND, StatusCode.PERMISSION_DENIED,
    StatusCode.UNAUTHENTICATED, StatusCode.OUT_OF_RANGE, StatusCode.ALREADY_EXISTS, StatusCode.UNIMPLEMENTED,
)  # fmt: skip


def judge(code: StatusCode, details: str, endpoint: str) -> Failure:
    """Of an error that came after the request was sent."""
    what = f"etcd at {endpoint}: {details or code.name.lower()}"
    if "database space exceeded" in details:
        # Also said of a write that was applied, when the quota was passed between its proposal and its turn.
        full = StoreFull(
            "etcd's space quota is used up (alarm NOSPACE)", hint="it is compacted and defragmented by itself, or by its owner"
        )
        return Failure(Verdict.UNKNOWN, full)
    if details.startswith(_ELSEWHERE):
        return Failure(Verdict.ELSEWHERE, StoreUnavailable(what, hint="etcd has no leader, or is overloaded"))
    if any(text in details for text in _LATER):
        return Failure(Verdict.REFUSED, Busy(what, hint="try again in a moment"))
    if "requested lease not found" in details:
        return Failure(Verdict.REFUSED, LeaseLost("the lease has ended"))
    if "required revision has been compacted" in details:
        return Failure(Verdict.REFUSED, Compacted("the revision has been compacted", hint="list again"))
    if "request is too large" in details or "larger than max" in details:
        return Failure(Verdict.REFUSED, TooLarge(what))
    if code in _DEFINITE:
        return Failure(Verdict.REFUSED, Invalid(what))
    return Failure(Verdict.UNKNOWN, StoreUnavailable(what, hint="see `piccoloctl cluster list`"))
