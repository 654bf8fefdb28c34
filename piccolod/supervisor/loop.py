"""One thread, one epoll, one heap of timers. A callback's exception is reported and costs nobody else anything."""

from __future__ import annotations

import heapq
import itertools
import select
from collections.abc import Callable
from typing import Final

from piccolod import clock

# No wait is longer, so that a pause of the whole machine shows as a stall here before it shows as a missed beat.
_LONGEST_WAIT_S: Final = 0.5
_STALL_S: Final = 0.2


class Timer:
    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._on_error = on_error
        self._running = False
        self._left_at = 0.0
        self.on_stall: Callable[[float], None] = lambda _stalled_s: None

    # --- what to wait for

    def watch(self, fd: int, callback: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Calls `callback(events)` whenever `fd` is ready. Level-triggered; a callback must bear being called for nothing."""
        self._epoll.register(fd, events)
        self._watched[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed: a copy of it in another process would keep it in the epoll for ever."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        return self.at(clock.now() + seconds, callback)

    # --- running

    def run(self) -> None:
        """Until `stop`."""
        self._running = True
        self._left_at = clock.now()
        while self._running:
            self.turn()

    def stop(self) -> None:
        self._running = False

    def turn(self, longest_s: float = _LONGEST_WAIT_S) -> None:
        """Waits once, then serves descriptors before timers: a beat that has come is heard before it is missed."""
        entered_at = clock.now()
        wait_s = min(longest_s, max(0.0, self._timers[0][0] - entered_at)) if self._timers else longest_s
        # epoll counts whole milliseconds, rounded up
        ready = self._epoll.poll(wait_s)
        left_at = clock.now()
        stalled_s = max(left_at - entered_at - wait_s, entered_at - self._left_at if self._left_at else 0.0)
        self._left_at = left_at
        for fd, events in ready:
            callback = self._watched.get(fd)
            if callback is not None:
                self._call(callback, events)
        if stalled_s > _STALL_S:
            self.on_stall(stalled_s)
        self._run_timers()

    def _run_timers(self) -> None:
        now = clock.now()
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].callback is None):
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                self._call(callback)

    def _call(self, callback: Callable[..., None], *args: int) -> None:
        try:
            callback(*args)
        except Exception as error:
            self._on_error(error)

    def close(self) -> None:
        self._epoll.close()
