"""A write that only the leader can make, sent on to it: for browsers and the unix socket, which cannot be sent elsewhere.

The request runs here first, as always: who calls, may they, does it fit. When it ends in `NotLeader` nothing was done, and its
answer has not left yet: in its place goes the leader's. One hop only: what was forwarded is never forwarded again. While the
leadership moves nothing is done anywhere, and it begins again here: a switchover costs time and no errors.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from litestar.types import ASGIApp, Message, Receive, Send

from piccolod import clock
from piccolod.errors import BY_CODE, LeaderHint, NoLeader, NotLeader, OutcomeUnknown, PiccoloError, TooLarge, Unavailable
from services.api import problem
from services.api.actor import Kind
from services.api.call import Call
from services.api.rpc.client import Client
from services.api.rpc.places import Places
from services.api.rpc.wire import ANSWER_BYTES, BODY_BYTES, MEDIA_TYPE, Answered, Forwarded, Headers

PATH: Final = "/forward"
# The slowest changes of the API take 60 s.
_WITHIN_S: Final = 62.0
_SENT: Final = frozenset({b"accept", b"content-type", b"host", b"origin", b"idempotency-key", b"user-agent"})
# Who calls by the unix socket is known by it, and by nothing that it sends.
_SENT_FOR_OTHERS: Final = frozenset({b"cookie", b"x-csrf-token", b"authorization"})
_BROUGHT_BACK: Final = frozenset({b"content-type", b"location", b"set-cookie", b"retry-after", b"www-authenticate", b"allow"})
_RETRY_S: Final = 1.0
# As long as persistence parks a write that crosses a switchover.
_MOVING_S: Final = 2.0
_AGAIN_S: Final = 0.05


class Relay:
    def __init__(self, client: Client, places: Places) -> None:
        self._client = client
        self._places = places

    async def run(self, app: ASGIApp, scope: Any, call: Call, receive: Receive, send: Send) -> None:
        taken = _Taken(receive)
        give_up_at = clock.now() + _MOVING_S
        while True:
            held = _Held(call, send)
            here: Any = {**scope, "state": dict(scope["state"])}
            await app(here, taken.receive, held.send)
            if held.leader is None:
                return
            try:
                answer = await self._ask(scope, call, held.leader, await taken.whole())
                break
            except ConnectionError:
                return  # the client went away
            except NoLeader as error:
                if clock.now() >= give_up_at:
                    answer = _refused(call, error)
                    break
            except PiccoloError as error:
                answer = _refused(call, error)
                break
            await asyncio.sleep(_AGAIN_S)
            taken.rewind()
        call.code = _code(answer)
        length = (b"content-length", str(len(answer.body)).encode())
        await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, length]})
        await send({"type": "http.response.body", "body": answer.body, "more_body": False})

    async def _ask(self, scope: Any, call: Call, leader: LeaderHint, body: bytes) -> Answered:
        """Raises NoLeader when nothing was done, OutcomeUnknown when it may have been."""
        asked = msgspec.msgpack.encode(_forwarded(scope, call, body))
        try:
            place = self._places.of(leader)
            found = await self._client.post(
                place, PATH, asked, MEDIA_TYPE, timeout_s=_WITHIN_S, most_bytes=ANSWER_BYTES
            )  # fmt: skip
        except Unavailable as error:
            raise NoLeader(
                f"{leader.node} leads, and {error.detail}", hint="try again in a moment", retry_after_s=_RETRY_S
            ) from error
        try:
            answer = msgspec.msgpack.decode(found, type=Answered)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise OutcomeUnknown(
                f"{leader.node} was asked and its answer cannot be read: {error}", hint="look before it is repeated"
            ) from None
        if _code(answer) in (NotLeader.code, NoLeader.code):
            raise NoLeader(
                f"{leader.node} does not lead any more", hint="the leadership is moving: try again", retry_after_s=_RETRY_S
            )
        return msgspec.structs.replace(answer, headers=_brought_back(answer.headers))


class _Taken:
    """The body, as the routes read it, kept for a second reading."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._body = bytearray()
        self._again: bytes | None = None
        self._ended = False
        self._too_large = False

    def rewind(self) -> None:
        """The next reader gets it from the beginning; only after `whole`."""
        self._again = bytes(self._body)

    async def receive(self) -> Any:
        if self._again is not None:
            again, self._again = self._again, None
            return {"type": "http.request", "body": again, "more_body": False}
        message: Any = await self._receive()
        if message["type"] == "http.request":
            self._keep(message)
        return message

    def _keep(self, message: Any) -> None:
        self._ended = not message.get("more_body", False)
        if len(self._body) + len(message.get("body", b"")) > BODY_BYTES:
            self._too_large = True  # an upload goes through, and is not kept
            self._body.clear()
        if not self._too_large:
            self._body += message.get("body", b"")

    async def whole(self) -> bytes:
        """All of it, also what no route has read. Raises TooLarge, ConnectionError when the client went away."""
        while not self._ended and not self._too_large:
            message: Any = await self._receive()
            if message["type"] != "http.request":
                raise ConnectionResetError
            self._keep(message)
        if self._too_large:
            raise TooLarge(f"a body for the leader has at most {BODY_BYTES >> 20} MiB", hint="send it to the leader itself")
        return bytes(self._body)


class _Held:
    """Lets an answer through, unless it turns out as it begins that another node has to give it."""

    def __init__(self, call: Call, send: Send) -> None:
        call.elsewhere, call.code = None, ""  # of an earlier attempt
        self._call = call
        self._send = send
        self.leader: LeaderHint | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.leader = self._call.elsewhere
        if self.leader is None:
            await self._send(message)


def _refused(call: Call, error: PiccoloError) -> Answered:
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers(error).items()]
    headers.append((b"content-type", problem.MEDIA_TYPE.encode()))
    return Answered(status=error.status, headers=headers, body=problem.encode(error, call.request_id))


def _forwarded(scope: Any, call: Call, body: bytes) -> Forwarded:
    as_root = call.actor.kind is Kind.SOCKET
    wanted = _SENT if as_root else _SENT | _SENT_FOR_OTHERS
    return Forwarded(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"],
        headers=[(name, value) for name, value in scope["headers"] if name in wanted],
        body=body,
        as_root=as_root,
        source=call.origin.source,
        secure=call.origin.secure,
        request_id=call.request_id,
    )


def _brought_back(headers: Headers) -> Headers:
    """What the leader says of the answer; what concerns a connection each node says for itself."""
    return [(name, value) for name, value in headers if name in _BROUGHT_BACK or name.startswith(b"piccolo-")]


def _code(answer: Answered) -> str:
    if answer.status < 300:
        return ""
    try:
        code = str(msgspec.json.decode(answer.body)["code"])
    except (msgspec.MsgspecError, TypeError, KeyError):
        return ""
    return code if code in BY_CODE else ""
