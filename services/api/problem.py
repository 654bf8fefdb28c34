"""One shape for every error: RFC 9457 `application/problem+json`, for what we raise and for what the framework raises."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar.exceptions import HTTPException, ValidationException

from piccolod.errors import (
    Failed,
    Forbidden,
    Invalid,
    LeaderHint,
    MethodNotAllowed,
    NotFound,
    PiccoloError,
    Problem,
    TooLarge,
    TooMany,
    Unauthenticated,
    WrongMediaType,
)

MEDIA_TYPE: Final = "application/problem+json"
_RETRY_S: Final = 1.0
HEAD_TOO_LARGE: Final = "the request line and its headers have more than 32 KiB together"


class ProblemPlace(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    line: int
    column: int
    message: str


class ProblemLeader(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    address: str
    url: str
    epoch: int


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The one error shape."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str
    errors: tuple[ProblemPlace, ...]
    leader: ProblemLeader | None
    request_id: str


class HeadTooLarge(TooLarge):
    """The request line and its headers, not the body."""

    status = 431


_BY_STATUS: Final[dict[int, type[PiccoloError]]] = {
    400: Invalid, 401: Unauthenticated, 403: Forbidden, 404: NotFound, 405: MethodNotAllowed,
    413: TooLarge, 415: WrongMediaType, 429: TooMany,
}  # fmt: skip


def from_framework(error: HTTPException) -> PiccoloError:
    """What litestar refuses, in our words."""
    kind = _BY_STATUS.get(error.status_code)
    if kind is None:
        return Failed("the request failed by a mistake of ours", hint="see the log of the module `api`")
    if isinstance(error, ValidationException):
        return Invalid("the request does not fit", errors=tuple(_place(item) for item in error.extra or ()))
    if kind is NotFound:
        return NotFound("there is no such path", hint="/api/docs lists all paths")
    if kind is MethodNotAllowed:
        return MethodNotAllowed("this path does not have that method", hint="the header Allow names those it has")
    if kind is TooLarge:
        return TooLarge("the body is larger than this call takes")
    return kind(str(error.detail))


def document(error: PiccoloError, request_id: str) -> ProblemDocument:
    leader = error.leader
    return ProblemDocument(
        type=f"urn:piccolo:problem:{error.code}",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        code=error.code,
        detail=error.detail,
        hint=error.hint,
        errors=tuple(
            ProblemPlace(path=each.path, line=each.line, column=each.column, message=each.message) for each in error.errors
        ),
        leader=None if leader is None else _leader(leader),
        request_id=request_id,
    )


def encode(error: PiccoloError, request_id: str, more: dict[str, Any] | None = None) -> bytes:
    """`more`: members of the answer beside the shape's own (RFC 9457, 3.2)."""
    built: dict[str, Any] = {**(more or {}), **msgspec.to_builtins(document(error, request_id))}
    return msgspec.json.encode(built)


def headers(error: PiccoloError) -> dict[str, str]:
    found: dict[str, str] = {}
    if error.retry_after_s is not None or error.status in (429, 503):
        found["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or _RETRY_S)))
    if error.status == 401:
        found["WWW-Authenticate"] = 'Bearer realm="piccolo"'
    if error.leader is not None:
        found["Piccolo-Leader"] = error.leader.node
        found["Piccolo-Epoch"] = str(error.leader.epoch)
    return found


def _leader(hint: LeaderHint) -> ProblemLeader:
    return ProblemLeader(node=hint.node, address=hint.address, url=hint.url, epoch=hint.epoch)


def _place(item: Any) -> Problem:
    """One entry of litestar's `extra`. A bug of ours must not hide the user's mistake."""
    if not isinstance(item, dict):
        return Problem("", str(item))
    return Problem(str(item.get("key", "")), str(item.get("message", "")))
