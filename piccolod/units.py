"""Sizes and durations as people write them in manifests, configuration and on the command line."""

from __future__ import annotations

import math
import re
from typing import Final

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(B|[KMGT]i?B)")
_FACTOR: Final = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """`10GiB` as bytes. Raises ValueError with a sentence for the person who wrote it."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, as 512MiB")
    size = float(match[1]) * _FACTOR[match[2]]
    if not 1 <= size <= 2**60:
        raise ValueError(f"{text!r} must be between 1 B and 1 EiB")
    return int(size)


def format_size(size_bytes: int) -> str:
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = min(4, int(math.log(size_bytes, 1024)))
    return f"{size_bytes / 1024**power:.1f} {' KMGT'[power]}iB"


def parse_duration(text: str) -> float:
    """`250ms`, `10s`, `5m`, `2h`, `1d` as seconds. Raises ValueError with a sentence."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write a number and ms, s, m, h or d, as 10s")
    return float(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """The two largest units: `3d 4h`, `2m 5s`, `350ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    left, parts = int(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])
