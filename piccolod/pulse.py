"""The beat of a module: when its event loop last ran, in memory that it shares with the supervisor.

Not a message: beats of ten modules woke the supervisor 46 times a second, which was three quarters of what it used (measured).
It looks when somebody could have missed too many, and only then.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from typing import Final

from piccolod import clock

FD: Final = "pulse"  # its name among the descriptors of START

_BEAT: Final = struct.Struct("@2d")  # at (BOOTTIME), lag in ms
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Pulse:
    """The module's end."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over."""
        self._map = mmap.mmap(fd, _BEAT.size)
        os.close(fd)

    def beat(self, now: float, lag_ms: float) -> None:
        _BEAT.pack_into(self._map, 0, now, lag_ms)


class PulseReader:
    """The supervisor's end. Believes nothing that cannot be: the memory is the module's."""

    def __init__(self) -> None:
        """Raises OSError. `fd` is for the module; it cannot take the memory away under the reader."""
        self.fd = os.memfd_create("pulse", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, _BEAT.size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self._map = mmap.mmap(self.fd, _BEAT.size, prot=mmap.PROT_READ)

    def at(self) -> float:
        """When it last beat; 0.0 when it has not, or says something that is not in the past."""
        at = float(_BEAT.unpack_from(self._map)[0])
        return at if 0.0 < at <= clock.now() else 0.0  # now, not when the look began: it may have beaten since

    def lag_ms(self) -> float:
        lag_ms = float(_BEAT.unpack_from(self._map)[1])
        return round(lag_ms, 1) if math.isfinite(lag_ms) and lag_ms >= 0 else 0.0

    def close_fd(self) -> None:
        """Once the module has it."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        self.close_fd()
        self._map.close()
