"""The beat in shared memory: seen at once, and no more believed than a module deserves."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from piccolod import clock
from piccolod.pulse import Pulse, PulseReader


@pytest.fixture
def reader() -> Iterator[PulseReader]:
    reader = PulseReader()
    yield reader
    reader.close()


def test_a_beat_is_seen_with_its_lag_and_none_before_it(reader: PulseReader) -> None:
    pulse = Pulse(os.dup(reader.fd))
    assert (reader.at(), reader.lag_ms()) == (0.0, 0.0)
    now = clock.now()
    pulse.beat(now, 1.26)
    assert (reader.at(), reader.lag_ms()) == (now, 1.3)


def test_a_beat_that_comes_while_the_reader_looks_counts(reader: PulseReader) -> None:
    """The reader's look began before; taking the beat for one of the future lost a module that beats in step with the looks."""
    pulse = Pulse(os.dup(reader.fd))
    for _ in range(1000):
        pulse.beat(beaten_at := clock.now(), 0.0)
        assert reader.at() == beaten_at


@pytest.mark.parametrize("at", [clock.FOREVER, float("nan"), -1.0, 1e300])
def test_a_beat_that_cannot_be_is_none(reader: PulseReader, at: float) -> None:
    Pulse(os.dup(reader.fd)).beat(at, float("nan"))
    assert (reader.at(), reader.lag_ms()) == (0.0, 0.0)


def test_a_module_cannot_take_the_memory_away(reader: PulseReader) -> None:
    theirs = os.dup(reader.fd)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(theirs, 0)
        with mmap.mmap(theirs, 16) as memory:
            memory[:8] = struct.pack("@d", 1.0)
        assert reader.at() == 1.0
    finally:
        os.close(theirs)
