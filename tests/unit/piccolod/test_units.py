from __future__ import annotations

import pytest

from piccolod.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("1B", 1), ("10KiB", 10240), ("1.5MB", 1_500_000), ("2GiB", 2 * 2**30), ("1TB", 10**12)]
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1", "0B", "-1GB", "1 GB", "1gb", "1GB\n", "abcMB", "inf", "9999999999TiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|between"):
        parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("10s", 10), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "-1s", "10s\n", "1 s", "1w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_people_get_two_units_at_most() -> None:
    assert format_duration(3 * 86400 + 4 * 3600 + 59) == "3d 4h"
    assert format_duration(0.35) == "350ms"
    assert format_duration(60) == "1m"
    assert format_size(512) == "512 B"
    assert format_size(5 * 2**20) == "5.0 MiB"
