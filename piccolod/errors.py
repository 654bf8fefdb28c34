"""Every error that piccolod shows to a person or to another module.

    PiccoloError            code, HTTP status, exit code, hint
    ├─ Invalid              400  the input breaks a rule; `errors` lists each place
    ├─ NotSupported         400  the input is right, the machinery for it is not there yet
    ├─ Unauthenticated      401  no session, no token, or a wrong one
    ├─ WrongPassword        401
    ├─ Forbidden            403  known, but not allowed
    ├─ NotFound             404
    ├─ MethodNotAllowed     405
    ├─ Exists               409
    ├─ Busy                 409
    ├─ Conflict             409  a precondition of a write does not hold any more
    ├─ NotLeader            409  (307 when the API redirects)
    ├─ TooLarge             413
    ├─ WrongMediaType       415
    ├─ Locked               423
    ├─ TooMany              429  `retry_after_s`
    ├─ Failed               500  the operation was tried and failed
    ├─ NoLeader             503
    ├─ StoreUnavailable     503
    ├─ StoreCorrupt         503
    │  └─ StoreRestored     503  etcd is not the one that this node knew, or is older than what it showed
    ├─ Unavailable          503  a part that is needed does not answer (podman, a module)
    │  └─ PeerRestarted     503  the module died with the call in flight: unknown outcome
    ├─ DeadlineExceeded     504
    ├─ OutcomeUnknown       504  a write was sent and its end is not known: it may have happened, or happen yet
    └─ StoreFull            507
    TermOver                the leadership term ended: abandon the effect, at once
    Bug                     our fault, never the user's: an invariant is broken

`detail` says what failed and why, `hint` what to do. Both are shown as they are: no secrets in them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One place of an input that breaks a rule. `line` and `column` count from 1; 0 means unknown."""

    path: str
    message: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class LeaderHint:
    """Who can do what was refused here."""

    node: str
    address: str
    url: str
    epoch: int


class PiccoloError(Exception):
    """An error with a stable code. Raised anywhere, carried over commands, shown as problem+json."""

    code: ClassVar[str] = "failed"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        detail: str,
        *,
        hint: str = "",
        errors: tuple[Problem, ...] = (),
        leader: LeaderHint | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.errors = errors
        self.leader = leader
        self.retry_after_s = retry_after_s

    def to_wire(self) -> dict[str, Any]:
        """The form that travels in a command's reply; `from_wire` is its inverse."""
        return {
            "code": self.code,
            "detail": self.detail,
            "hint": self.hint,
            "errors": [[p.path, p.message, p.line, p.column] for p in self.errors],
            "leader": None
            if self.leader is None
            else [self.leader.node, self.leader.address, self.leader.url, self.leader.epoch],
            "retry_after_s": self.retry_after_s,
        }


class Invalid(PiccoloError):
    code, status, exit_code = "invalid", 400, 8


class NotSupported(PiccoloError):
    code, status, exit_code = "not_supported", 400, 8


class Unauthenticated(PiccoloError):
    code, status, exit_code = "unauthenticated", 401, 9


class WrongPassword(PiccoloError):
    code, status, exit_code = "wrong_password", 401, 9


class Forbidden(PiccoloError):
    code, status, exit_code = "forbidden", 403, 9


class NotFound(PiccoloError):
    code, status, exit_code = "not_found", 404, 3


class MethodNotAllowed(PiccoloError):
    code, status, exit_code = "method_not_allowed", 405, 2


class Exists(PiccoloError):
    code, status, exit_code = "exists", 409, 1


class Busy(PiccoloError):
    code, status, exit_code = "busy", 409, 1


class Conflict(PiccoloError):
    code, status, exit_code = "conflict", 409, 1


class NotLeader(PiccoloError):
    code, status, exit_code = "not_leader", 409, 5


class TooLarge(PiccoloError):
    code, status, exit_code = "too_large", 413, 8


class WrongMediaType(PiccoloError):
    code, status, exit_code = "wrong_media_type", 415, 8


class Locked(PiccoloError):
    code, status, exit_code = "locked", 423, 4


class TooMany(PiccoloError):
    code, status, exit_code = "too_many", 429, 1


class Failed(PiccoloError):
    code, status, exit_code = "failed", 500, 1


class NoLeader(PiccoloError):
    code, status, exit_code = "no_leader", 503, 6


class StoreUnavailable(PiccoloError):
    code, status, exit_code = "store_unavailable", 503, 6


class StoreCorrupt(PiccoloError):
    code, status, exit_code = "store_corrupt", 503, 6


class StoreRestored(StoreCorrupt):
    code = "store_restored"


class Unavailable(PiccoloError):
    code, status, exit_code = "unavailable", 503, 1


class PeerRestarted(Unavailable):
    code = "peer_restarted"


class DeadlineExceeded(PiccoloError):
    code, status, exit_code = "deadline_exceeded", 504, 7


class OutcomeUnknown(PiccoloError):
    """No StoreUnavailable: that one says that nothing was written."""

    code, status, exit_code = "outcome_unknown", 504, 7


class StoreFull(PiccoloError):
    code, status, exit_code = "store_full", 507, 6


class TermOver(Exception):
    """The gate is shut: this process may not act for `resource` any more. Never caught to retry the effect."""

    def __init__(self, resource: str, reason: str) -> None:
        super().__init__(f"{resource}: {reason}")
        self.resource = resource
        self.reason = reason


class Bug(Exception):
    """An invariant of ours is broken. Not for users' input: let it crash the module, which starts clean."""


def _tree(root: type[PiccoloError]) -> list[type[PiccoloError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[PiccoloError]] = {kind.code: kind for kind in _tree(PiccoloError)[1:]}


def from_wire(wire: dict[str, Any]) -> PiccoloError:
    """The error that `to_wire` described; an unknown code (a newer peer) becomes `Failed`."""
    kind = BY_CODE.get(str(wire.get("code")), Failed)
    leader = wire.get("leader")
    return kind(
        str(wire.get("detail", "")),
        hint=str(wire.get("hint", "")),
        errors=tuple(Problem(*p) for p in wire.get("errors") or ()),
        leader=None if leader is None else LeaderHint(*leader),
        retry_after_s=wire.get("retry_after_s"),
    )


def from_problem(status: int, body: bytes, where: str = "") -> PiccoloError:
    """The error that the problem document of another node tells of; `where` it came from is put before its words.

    `Failed` for an unknown code (a newer node), and for a body that is no such document.
    """
    try:
        document = json.loads(body)
        kind, leader = BY_CODE.get(str(document["code"]), Failed), document.get("leader")
        return kind(
            f"{where}: {document['detail']}" if where else str(document["detail"]),
            hint=str(document.get("hint") or ""),
            leader=None if leader is None else LeaderHint(**{name: leader[name] for name in LeaderHint.__slots__}),
        )
    except (ValueError, KeyError, TypeError):
        return Failed(
            f"{where or 'the other node'} answered {status} and nothing that can be read", hint="is it a newer piccolod?"
        )
