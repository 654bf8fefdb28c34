"""What a person sees when something fails: what and why, the places, what to do, and the id to look for in the logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from piccolod.errors import (
    BY_CODE,
    DeadlineExceeded,
    Failed,
    Forbidden,
    Invalid,
    LeaderHint,
    Locked,
    NotFound,
    NotLeader,
    PiccoloError,
    Problem,
    TooMany,
    Unauthenticated,
    Unavailable,
)

# For an answer without a code that we know: a proxy's, or a newer piccolod's.
_BY_STATUS: dict[int, type[PiccoloError]] = {
    400: Invalid, 401: Unauthenticated, 403: Forbidden, 404: NotFound, 408: DeadlineExceeded, 413: Invalid, 415: Invalid,
    422: Invalid, 423: Locked, 429: TooMany, 502: Unavailable, 503: Unavailable, 504: DeadlineExceeded,
}  # fmt: skip


class Refusal(Exception):
    """The API answered with an error. `error.exit_code` is the exit code of the command.

    `file` is what was sent, where that has lines: an editor can jump to `FILE:LINE:COL`.
    """

    def __init__(self, error: PiccoloError, request_id: str = "") -> None:
        super().__init__(error.detail)
        self.error = error
        self.request_id = request_id
        self.file = ""


def from_problem(status: int, document: object) -> Refusal:
    """From an answer's body; `document` is anything when it is not problem+json."""
    body: dict[str, Any] = document if isinstance(document, dict) else {}
    code = str(body.get("code") or "")
    kind = BY_CODE.get(code) or (NotLeader if status == 307 else _BY_STATUS.get(status, Failed))
    detail = str(body.get("detail") or body.get("title") or f"the API answered {status} and gave no reason")
    retry = body.get("retry_after_s")
    return Refusal(
        kind(
            detail,
            hint=str(body.get("hint") or ""),
            errors=tuple(_problem(item) for item in _list(body.get("errors"))),
            leader=_leader(body.get("leader")),
            retry_after_s=float(retry) if isinstance(retry, int | float) else None,
        ),
        request_id=str(body.get("request_id") or ""),
    )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _problem(item: object) -> Problem:
    if not isinstance(item, dict):
        return Problem("", str(item))
    return Problem(
        str(item.get("path") or ""), str(item.get("message") or ""), _whole(item.get("line")), _whole(item.get("column"))
    )


def _leader(item: object) -> LeaderHint | None:
    if not isinstance(item, dict):
        return None
    return LeaderHint(
        str(item.get("node") or ""), str(item.get("address") or ""), str(item.get("url") or ""), _whole(item.get("epoch"))
    )


def explain(failure: Refusal | PiccoloError) -> Iterator[str]:
    """The lines for stderr."""
    error = failure.error if isinstance(failure, Refusal) else failure
    file = failure.file if isinstance(failure, Refusal) else ""
    yield f"error: {error.detail}"
    for problem in error.errors:
        yield f"  {_place(problem, file)}"
    if error.leader is not None and isinstance(error, NotLeader):
        yield f"  the leader is {error.leader.node} at {error.leader.url or error.leader.address}"
    if error.hint:
        yield f"hint: {error.hint}"
    if error.retry_after_s and isinstance(error, TooMany):
        yield f"hint: try again in {error.retry_after_s:.0f} s"
    if isinstance(failure, Refusal) and failure.request_id:
        yield f"request: {failure.request_id}"


def _place(problem: Problem, file: str) -> str:
    parts = [":".join(str(part) for part in (file, problem.line, problem.column) if part)] if file or problem.line else []
    return ": ".join([*parts, *(text for text in (problem.path, problem.message) if text)])
