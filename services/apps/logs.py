"""Lines of a container's log, from podman's frames. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from piccolod.protocol.apps import LogLine, LogLines

MAX_TAIL: Final = 1000
_MAX_LINE: Final = 4096
_STREAMS: Final = {1: "stdout", 2: "stderr"}
_STAMP: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")


def parse(raw: bytes) -> Iterator[tuple[int, str, str]]:
    """(nanoseconds since 1970, stream, line) of each frame {stream, 0, 0, 0, length of 4 bytes} with a stamped line."""
    at = 0
    last_ns = 0
    while at + 8 <= len(raw):
        stream = _STREAMS.get(raw[at], "stdout")
        size = int.from_bytes(raw[at + 4 : at + 8], "big")
        text = raw[at + 8 : at + 8 + size].decode(errors="replace")
        at += 8 + size
        for line in text.splitlines():
            match = _STAMP.match(line)
            if match is not None:
                last_ns = _nanoseconds(match)
                line = line[match.end() :]
            yield last_ns, stream, line[:_MAX_LINE]


def page(raw: bytes, *, tail: int, since_ms: int, cursor: str) -> LogLines:
    """The last `tail` lines after the cursor, which is `<ns>-<lines of that very ns that were already given>`."""
    after_ns, given = _cursor(cursor)
    fresh: list[tuple[int, str, str]] = []
    skipped = 0
    for entry in parse(raw):
        if entry[0] < after_ns or entry[0] < since_ms * 1_000_000:
            continue
        if entry[0] == after_ns and skipped < given:
            skipped += 1
            continue
        fresh.append(entry)
    shown = fresh[-max(1, min(tail, MAX_TAIL)) :]
    lines = tuple(LogLine(at_ms=ns // 1_000_000, stream=stream, line=line) for ns, stream, line in shown)
    if not fresh:
        return LogLines(lines=(), cursor=cursor)
    last_ns = fresh[-1][0]
    same = sum(1 for ns, _, _ in fresh if ns == last_ns) + (given if last_ns == after_ns else 0)
    return LogLines(lines=lines, cursor=f"{last_ns}-{same}")


def since_of(cursor: str, since_ms: int) -> str:
    """What podman is asked for: a whole second earlier, for its own rounding; `page` drops what is too much."""
    after_ns, _ = _cursor(cursor)
    begin_s = max(after_ns // 1_000_000_000, since_ms // 1000) - 1
    return str(begin_s) if begin_s > 0 else ""


def _cursor(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,20})-(\d{1,9})", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _nanoseconds(match: re.Match[str]) -> int:
    zone = "+00:00" if match[3] == "Z" else match[3]
    whole = int(datetime.fromisoformat(match[1] + zone).astimezone(UTC).timestamp())
    return whole * 1_000_000_000 + int((match[2] or "0").ljust(9, "0"))
