from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.http import HEAD_BYTES, Chunked, Head, Length, Refused, answer, rewrite

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def done(data: bytes) -> Head:
    head = rewrite(data, "192.0.2.7")
    assert head is not None
    return head


def refused(data: bytes) -> int:
    with pytest.raises(Refused) as caught:
        rewrite(data, "192.0.2.7")
    return caught.value.status


def test_the_clients_address_is_added_and_the_rest_passes_as_it_came() -> None:
    head = done(b"GET /a?b=%20c HTTP/1.1\r\nHost: notes.lan:35000\r\nAccept: */*\r\nCookie: a=b; c=d\r\n\r\nmore")
    assert head.rewritten == (
        b"GET /a?b=%20c HTTP/1.1\r\nHost: notes.lan:35000\r\nAccept: */*\r\nCookie: a=b; c=d\r\n"
        b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: notes.lan:35000\r\n"
        b"Connection: close\r\n\r\n"
    )
    assert head.used == len(b"GET /a?b=%20c HTTP/1.1\r\nHost: notes.lan:35000\r\nAccept: */*\r\nCookie: a=b; c=d\r\n\r\n")
    assert head.body.done


@pytest.mark.parametrize(
    "forged",
    [
        b"X-Forwarded-For: 10.0.0.1", b"x-forwarded-for:10.0.0.1", b"X_Forwarded_For: 10.0.0.1", b"X-Forwarded-Host: evil",
        b"X-Forwarded-Anything: 1", b"Forwarded: for=10.0.0.1", b"X-Real-IP: 10.0.0.1", b"X_REAL_IP: 10.0.0.1",
        b"Connection: keep-alive, X-Forwarded-For", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk",
    ],
)  # fmt: skip
def test_what_a_client_says_about_itself_is_dropped(forged: bytes) -> None:
    lines = done(b"GET / HTTP/1.1\r\nHost: a\r\n" + forged + b"\r\n\r\n").rewritten.split(b"\r\n")
    assert forged not in lines
    assert [line for line in lines if line.lower().startswith((b"x-forwarded-for", b"connection"))] == [
        b"X-Forwarded-For: 192.0.2.7",
        b"Connection: close",
    ]


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / http/1.1\r\nHost: a\r\n\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
    ],
)  # fmt: skip
def test_a_head_that_could_be_read_in_two_ways_is_refused(head: bytes) -> None:
    assert refused(head) == 400


def test_a_head_is_waited_for_and_its_length_is_bounded() -> None:
    assert rewrite(b"", "192.0.2.7") is None
    assert rewrite(b"GET / HTTP/1.1\r\nHost: a\r\n", "192.0.2.7") is None
    assert refused(b"GET / HTTP/1.1\r\nX: " + b"a" * HEAD_BYTES) == 431
    assert refused(b"GET / HTTP/1.1\r\nX: " + b"a" * HEAD_BYTES + b"\r\n\r\n") == 431


def test_an_http_1_0_request_needs_no_host() -> None:
    head = done(b"GET / HTTP/1.0\r\n\r\n")
    assert b"X-Forwarded-Host" not in head.rewritten
    assert b"X-Forwarded-For: 192.0.2.7" in head.rewritten


def test_the_absolute_form_passes_when_it_names_the_same_host() -> None:
    assert done(b"GET http://A:80/x HTTP/1.1\r\nHost: a:80\r\n\r\n").rewritten.startswith(b"GET http://A:80/x ")


def test_a_body_of_a_stated_length_ends_there() -> None:
    head = done(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    assert isinstance(head.body, Length)
    assert head.body.take(memoryview(b"123")) == 3
    assert head.body.take(memoryview(b"45GET /smuggled")) == 2
    assert head.body.done
    assert head.body.take(memoryview(b"GET /smuggled")) == 0


BODY = b"5\r\nhello\r\n1a;name=value\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"


@given(st.lists(st.integers(1, len(BODY)), max_size=12))
def test_a_chunked_body_ends_at_the_same_byte_however_it_is_cut(cuts: list[int]) -> None:
    body = done(CHUNKED).body
    data, taken = BODY + b"GET /smuggled", 0
    edges = [0, *sorted(set(cuts)), len(data)]
    for start, end in itertools.pairwise(edges):
        taken += body.take(memoryview(data[start:end]))
    assert taken == len(BODY)
    assert body.done


@pytest.mark.parametrize(
    "broken",
    [
        b"\r\n", b"5\nhello", b"+5\r\nhello", b" 5\r\nhello", b"5 \r\nhello", b"0x5\r\nhello", b"-1\r\n", b"5\r\nhello0\r\n", b"5\r\nhelloX",
        b"fffffffffffffffff\r\n", b"5;" + b"a" * 300, b"5;a\nb\r\n", b"0\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
    ],
)  # fmt: skip
def test_a_broken_chunk_or_a_trailer_is_refused(broken: bytes) -> None:
    with pytest.raises(Refused):
        Chunked().take(memoryview(broken))


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_waited_for_and_never_anything_else(data: bytes) -> None:
    try:
        head = rewrite(data, "192.0.2.7")
    except Refused:
        return
    assert head is None or head.rewritten.endswith(b"\r\n\r\n")


def test_an_answer_is_a_whole_response_that_says_when_to_come_back() -> None:
    text = answer(503, "this app is being moved", retry_after_s=1)
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 1\r\n" in head
    assert b"\r\nConnection: close" in head
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert b"Retry-After" not in answer(400, "no")
