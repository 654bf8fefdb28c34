"""Lines of containers, once each."""

from __future__ import annotations

from services.apps import logs


def frame(text: str, stream: int = 1) -> bytes:
    body = text.encode()
    return bytes([stream, 0, 0, 0]) + len(body).to_bytes(4, "big") + body


RAW = b"".join(
    [
        frame("2026-01-01T00:00:00.100000000Z one\n"),
        frame("2026-01-01T01:00:00.200000000+01:00 two\n", 2),
        frame("2026-01-01T00:00:00.200000000Z three\n"),
    ]
)


def test_frames_become_lines_with_stream_and_time() -> None:
    page = logs.page(RAW, tail=10, since_ms=0, cursor="")
    assert [(line.at_ms % 1000, line.stream, line.line) for line in page.lines] == [
        (100, "stdout", "one"), (200, "stderr", "two"), (200, "stdout", "three"),
    ]  # fmt: skip


def test_following_by_the_cursor_gives_each_line_once() -> None:
    first = logs.page(RAW[: len(RAW) - len(frame("2026-01-01T00:00:00.200000000Z three\n"))], tail=10, since_ms=0, cursor="")
    second = logs.page(RAW, tail=10, since_ms=0, cursor=first.cursor)
    assert [line.line for line in second.lines] == ["three"]
    third = logs.page(RAW, tail=10, since_ms=0, cursor=second.cursor)
    assert third.lines == ()
    assert third.cursor == second.cursor


def test_tail_and_since_bound_the_answer() -> None:
    assert [line.line for line in logs.page(RAW, tail=1, since_ms=0, cursor="").lines] == ["three"]
    since_ms = logs.page(RAW, tail=9, since_ms=0, cursor="").lines[1].at_ms
    assert [line.line for line in logs.page(RAW, tail=9, since_ms=since_ms, cursor="").lines] == ["two", "three"]


def test_garbage_is_no_crash() -> None:
    assert logs.page(b"\x01\0\0\0\0\0\xff\xffx\xff", tail=5, since_ms=0, cursor="nonsense").lines[0].line == "x\ufffd"
    assert logs.page(b"", tail=5, since_ms=0, cursor="").lines == ()
