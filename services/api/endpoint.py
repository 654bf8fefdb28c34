"""How a route is declared: who may call it, what it takes, and how it can fail. The OpenAPI document follows from that.

A route without a declaration is for admins alone, and a test finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from litestar import route
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Operation, RequestBody
from litestar.openapi.spec.media_type import OpenAPIMediaType
from litestar.openapi.spec.schema import Schema

from piccolod.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    Exists,
    Failed,
    Forbidden,
    Invalid,
    Locked,
    NoLeader,
    NotFound,
    NotLeader,
    NotSupported,
    PeerRestarted,
    PiccoloError,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
    WrongMediaType,
    WrongPassword,
)
from services.api.actor import Scope
from services.api.problem import MEDIA_TYPE, ProblemDocument

JSON: Final = ("application/json",)
YAML: Final = ("application/yaml", "application/x-yaml", "text/yaml")
TAR: Final = ("application/x-tar", "application/octet-stream", "application/gzip")

BODY_BYTES: Final = 64 * 1024

Failures = tuple[type[PiccoloError], ...]

ASKING: Final[Failures] = (Failed, Unavailable, PeerRestarted, DeadlineExceeded)
GUARDED: Final[Failures] = (Unauthenticated, Locked)
BODY: Final[Failures] = (TooLarge, WrongMediaType)
STORE: Final[Failures] = (Locked, StoreUnavailable, StoreCorrupt)
ELSEWHERE: Final[Failures] = (NotLeader, NoLeader)
COMMIT: Final[Failures] = (*STORE, *ELSEWHERE, Conflict, Busy, TooLarge, StoreFull)
PASSWORD: Final[Failures] = (WrongPassword, TooMany)
UNKNOWN: Final[Failures] = (NotFound,)
MANIFEST: Final[Failures] = (NotSupported, Exists, *COMMIT)


def endpoint(
    method: str,
    path: str,
    *,
    scope: Scope | None,
    fails: Failures = (),
    accepts: tuple[str, ...] = (),
    status: int = 200,
    media_type: str = "application/json",
    body_bytes: int | None = BODY_BYTES,
    raw_body: dict[str, Any] | None = None,
    asks: bool = True,
    leads: bool | None = None,
    moves: bool | None = None,
    tag: str = "",
) -> Callable[[Any], Any]:
    """`scope` None: for anybody. `accepts`: the media types of the body. `raw_body`: its schema when the route reads it.

    `asks`: the answer comes from another process. `leads`: only the kernel's leader can do it, and another node says so before
    it begins; by default what can fail with NotLeader, and is not for anybody. `moves`: it is sent on to the leader, with a
    token by 307; by default what only the leader can do.
    """
    kinds: Failures = (Invalid, *(ASKING if asks else ()), *fails, *(GUARDED if scope else ()), *(BODY if accepts else ()))
    if leads is None:
        leads = NotLeader in kinds and scope is not None and method not in ("GET", "HEAD")
    moves = leads if moves is None else moves
    if method not in ("GET", "HEAD") or scope not in (None, Scope.READ):
        kinds = (*kinds, Forbidden)  # a foreign page, a foreign host, or too small a scope
    return route(
        path,
        http_method=method,  # type: ignore[arg-type]
        status_code=status,
        media_type=media_type,
        responses=_responses(kinds) | (_REDIRECT if moves else {}),
        opt={"scope": scope, "accepts": accepts, "declared": True, "leads": leads, "moves": moves},
        request_max_body_size=body_bytes,
        operation_class=_operation(accepts, raw_body),
        tags=[tag] if tag else None,
        security=[{"token": []}, {"session": []}] if scope else [{}],
    )


def _responses(kinds: Failures) -> dict[int, ResponseSpec]:
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        known = codes.setdefault(kind.status, [])
        if kind.code not in known:
            known.append(kind.code)
    return {
        status: ResponseSpec(
            data_container=ProblemDocument,
            generate_examples=False,
            description=f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for code in names)}",
            media_type=MEDIA_TYPE,
        )
        for status, names in sorted(codes.items())
    }


_REDIRECT: Final = {
    307: ResponseSpec(
        data_container=ProblemDocument,
        generate_examples=False,
        description="With a token, where another node leads: `not_leader`; the header Location is the same call there.",
        media_type=MEDIA_TYPE,
    )
}


def _operation(accepts: tuple[str, ...], raw_body: dict[str, Any] | None) -> type[Operation]:
    """What litestar cannot know of a route: the body that it reads itself."""

    @dataclass
    class Declared(Operation):
        def __post_init__(self) -> None:
            if raw_body is not None:
                media = OpenAPIMediaType(schema=Schema(**raw_body))
                self.request_body = RequestBody(required=True, content=dict.fromkeys(accepts, media))

    return Declared
