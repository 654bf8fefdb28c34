"""HTTP to piccolod: over its unix socket, or to a URL with a token. Standard library only, so that a start is fast.

Every failure is a sentence for a person: `Refusal` when the API answered with an error, `Unavailable`,
`DeadlineExceeded` or `Forbidden` when it did not answer.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode, urljoin, urlsplit

from piccolod import clock
from piccolod.cli.refusal import Refusal, from_problem
from piccolod.cli.target import Target, connect_to
from piccolod.cli.trouble import garbage, said_well
from piccolod.cli.upload import Upload
from piccolod.errors import NotLeader, PeerRestarted, Unavailable

BASE: Final = "/api/v1"
READ_S: Final = 10.0
# The API gives its slowest changes (lock, uninstall) 60 s: what it says at the end of them is worth waiting for.
WRITE_S: Final = 65.0
_MAX_ANSWER_BYTES: Final = 64 * 2**20
_MAX_REDIRECTS: Final = 3
# A restart of a module takes some 20 ms: ten times that is waited.
_RETRY_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> Any:
        """The body as JSON; Unavailable when it is something else."""
        if not self.body:
            return None
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise garbage(f"the body is not JSON ({error})") from error


def path_of(*parts: str, **query: object) -> str:
    """`path_of("apps", name, purge=True)`: every part quoted, `None` and `False` left out of the query."""
    path = "/" + "/".join(quote(part, safe=":") for part in parts)
    pairs = {key: "true" if value is True else value for key, value in query.items() if value not in (None, False, "")}
    return f"{path}?{urlencode(pairs)}" if pairs else path


class Client:
    """Requests to one piccolod, with one budget of time each."""

    def __init__(
        self,
        target: Target,
        *,
        read_s: float | None = READ_S,
        write_s: float | None = WRITE_S,
        redirect: bool = True,
    ) -> None:
        """Each request has `read_s` or `write_s` in all; None: as long as it takes."""
        self.target = target
        self.read_s = read_s
        self.write_s = write_s
        self.redirect = redirect

    def get(self, path: str) -> Any:
        return self.request("GET", path).document()

    def send(self, method: str, path: str, document: object = None, *, repeat: bool = True) -> Any:
        """A write with a JSON body (none when `document` is None)."""
        if document is None:
            return self.request(method, path, repeat=repeat).document()
        body = json.dumps(document).encode()
        return self.request(method, path, body, content_type="application/json", repeat=repeat).document()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Upload | None = None,
        *,
        content_type: str = "",
        accept: frozenset[int] = frozenset(),
        repeat: bool = True,
    ) -> Answer:
        """One answer, whole. Statuses from 300 on raise Refusal unless they are in `accept`.

        `repeat`: a request whose answer was lost is sent once more, with the same idempotency key.
        """
        deadline_at = _deadline(self.read_s if method in ("GET", "HEAD") else self.write_s)
        headers = self._headers(method, content_type)
        again = repeat and _repeatable(body)
        while True:
            may_again = again and clock.now() + _RETRY_PAUSE_S < deadline_at
            again = False
            try:
                answer = self._once(method, path, body, headers, deadline_at)
            except Unavailable:
                if not may_again or not self._running():
                    raise
            else:
                if answer.status < 300 or answer.status in accept:
                    return answer
                refusal = _refused(answer)
                if not may_again or not isinstance(refusal.error, PeerRestarted):
                    raise refusal
            # Safe to repeat: the idempotency key makes a second arrival return the first one's result.
            time.sleep(_RETRY_PAUSE_S)

    def _once(self, method: str, path: str, body: bytes | Upload | None, headers: dict[str, str], deadline_at: float) -> Answer:
        with self._exchange(method, path, body, headers, deadline_at) as response:
            return Answer(response.status, dict(response.headers), _read(response, deadline_at, self.target))

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Iterator[bytes]]:
        """The lines of an endless answer, as they come. Ends with StopIteration when the server closes it."""
        deadline_at = _deadline(self.read_s)
        wanted = {**self._headers("GET", ""), **(headers or {})}
        with self._exchange("GET", path, None, wanted, deadline_at) as response:
            if response.status >= 300:
                raise _refused(Answer(response.status, dict(response.headers), _read(response, deadline_at, self.target)))
            yield _lines(response, deadline_at, self.target)

    def _running(self) -> bool:
        return bool(self.target.url) or os.path.exists(self.target.socket)

    def _headers(self, method: str, content_type: str) -> dict[str, str]:
        headers = {"Accept": "application/json, application/problem+json, */*", "User-Agent": "piccoloctl"}
        if self.target.token:
            headers["Authorization"] = f"Bearer {self.target.token}"
        if not self.redirect:
            headers["Piccolo-Redirect"] = "never"
        if method not in ("GET", "HEAD"):
            headers["Idempotency-Key"] = uuid.uuid4().hex
        if content_type:
            headers["Content-Type"] = content_type
        return headers

    @contextmanager
    def _exchange(
        self, method: str, path: str, body: bytes | Upload | None, headers: dict[str, str], deadline_at: float
    ) -> Iterator[http.client.HTTPResponse]:
        """Sends and follows leader hints; the response is open inside the block."""
        target, where = self.target, _full(self.target, path)
        for _ in range(_MAX_REDIRECTS + 1):
            connection = connect_to(target, _left(deadline_at))
            try:
                with said_well(target):
                    response = _round(connection, method, where, body, headers)
                location = response.headers.get("Location", "")
                if response.status not in (307, 308) or not location or not self.redirect:
                    yield response
                    return
                target, where = self._follow(target, where, location, body)
            finally:
                connection.close()
        raise NotLeader(
            f"{self.target} sent us on {_MAX_REDIRECTS} times: the leadership is moving",
            hint="wait a second and try again",
        )

    def _follow(self, target: Target, where: str, location: str, body: bytes | Upload | None) -> tuple[Target, str]:
        base = target.url or "http://localhost"
        there = urlsplit(urljoin(urljoin(base, where), location))
        if there.scheme not in ("http", "https") or (base.startswith("https:") and there.scheme == "http"):
            raise NotLeader(f"{target} sent us to {location}, which is not safe to follow")
        if not _repeatable(body):
            raise NotLeader(
                f"{target} is not the leader, and what came from standard input cannot be sent a second time",
                hint=f"send it to the leader: --url {there.scheme}://{there.netloc}",
            )
        place = f"{there.path}?{there.query}" if there.query else there.path
        if not target.url and not urlsplit(location).netloc:
            return target, place
        return Target(target.socket, f"{there.scheme}://{there.netloc}", target.token), place


def _repeatable(body: bytes | Upload | None) -> bool:
    return not isinstance(body, Upload) or body.again


def _full(target: Target, path: str) -> str:
    prefix = urlsplit(target.url).path.rstrip("/") if target.url else ""
    own_root = path.startswith(("/api/", "/metrics"))
    return prefix + (path if own_root else BASE + path)


def _deadline(seconds: float | None) -> float:
    return clock.FOREVER if seconds is None else clock.now() + seconds


def _left(deadline_at: float) -> float | None:
    return None if deadline_at == clock.FOREVER else max(0.001, deadline_at - clock.now())


def _round(
    connection: http.client.HTTPConnection, method: str, where: str, body: bytes | Upload | None, headers: dict[str, str]
) -> http.client.HTTPResponse:
    sent = body.open() if isinstance(body, Upload) else body
    length = {"Content-Length": str(body.size_bytes)} if isinstance(body, Upload) and body.size_bytes is not None else {}
    try:
        connection.connect()
        try:
            connection.request(method, where, body=sent, headers={**headers, **length})
        except (BrokenPipeError, ConnectionResetError):
            # The server answered before it had read everything (too large, refused): the answer says why.
            if connection.sock is None:
                raise
            response = http.client.HTTPResponse(connection.sock, method=method)
            response.begin()
            return response
        return connection.getresponse()
    finally:
        if sent is not None and not isinstance(sent, bytes):
            sent.close()


def _read(response: http.client.HTTPResponse, deadline_at: float, target: Target) -> bytes:
    parts, size_bytes = [], 0
    with said_well(target):
        while chunk := response.read1(65536):
            parts.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > _MAX_ANSWER_BYTES:
                raise garbage(f"more than {_MAX_ANSWER_BYTES} bytes", target)
            if clock.now() > deadline_at:
                raise TimeoutError
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _lines(response: http.client.HTTPResponse, deadline_at: float, target: Target) -> Iterator[bytes]:
    while True:
        with said_well(target):
            if clock.now() > deadline_at:
                raise TimeoutError
            line = response.readline(_MAX_ANSWER_BYTES)
        if not line:
            return
        yield line


def _refused(answer: Answer) -> Refusal:
    document: object = None
    with suppress(ValueError):
        document = json.loads(answer.body)
    retry_after = answer.headers.get("Retry-After", answer.headers.get("retry-after", ""))
    if isinstance(document, dict) and retry_after.isdecimal():
        document.setdefault("retry_after_s", int(retry_after))
    return from_problem(answer.status, document)
