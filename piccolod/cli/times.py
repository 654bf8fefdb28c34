"""Moments as people read them, in the time zone of the reader."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from piccolod.units import format_duration, parse_duration


def moment(wall_ms: int) -> str:
    """`2026-03-01 12:00:05`; `-` for 0."""
    if not wall_ms:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_ms / 1000))


def ago(wall_ms: int) -> str:
    if not wall_ms:
        return "-"
    return f"{format_duration(max(1.0, time.time() - wall_ms / 1000))} ago"


def parse_since(text: str) -> int:
    """`10m` (ago) or `2026-03-01T12:00:00` as milliseconds since 1970. Raises ValueError with a sentence."""
    if re.fullmatch(r"[\d.]+[a-z]+", text):
        return int((time.time() - parse_duration(text)) * 1000)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a duration as 10m nor a time as 2026-03-01T12:00:00") from None
    return int((when if when.tzinfo else when.astimezone()).astimezone(UTC).timestamp() * 1000)
