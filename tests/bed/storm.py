"""People who write all the time, through every member of a cluster, and what they were told.

They are programs with one token, which makes them one caller wherever they ask, and follow the leader where they are sent.
Each write has a title of its own and an idempotency key, and is repeated at the next member until somebody acknowledges it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.bed.machine import API_PORT, Machine
from tests.node import Failed, until

# What api-cli.md allows a writer to be told while something is wrong: who leads, locked, and not now.
EXPECTED = {200, 307, 409, 423, 503, 504}
# A commit is decided within 5 s (services/persistence/cluster_commit.py).
_PATIENCE_S, _CONNECT_S = 6.0, 1.0


@dataclass(frozen=True, slots=True)
class Acknowledged:
    title: str
    rev: int
    at: float  # time.monotonic


class Storm:
    """`acknowledged` in the order of each writer; `told` counts every other answer, `expected` are those that a fault explains."""

    def __init__(self, machines: list[Machine], writers: int = 3, pause_s: float = 0.02) -> None:
        made = machines[0].api("POST", "/auth/tokens", {"name": "storm", "scope": "admin"})
        assert made.status == 201, made
        self.bearer = f"Bearer {made.json['token']}"
        self._machines = machines
        self._pause_s = pause_s
        self._end, self._go = threading.Event(), threading.Event()
        self._go.set()
        self._resting: set[int] = set()
        self.acknowledged: list[Acknowledged] = []
        self.tried: set[str] = set()
        self.expected = set(EXPECTED)
        self.told: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._write, args=(number,), daemon=True) for number in range(writers)]

    def __enter__(self) -> Storm:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)

    @contextmanager
    def calm(self) -> Iterator[None]:
        """Nothing is under way inside: each writer has been told of its last write."""
        self._go.clear()
        try:
            until(lambda: len(self._resting) == len(self._threads), "every writer has its answer", 30)
            yield
        finally:
            self._go.set()

    def wait_acknowledged(self, within_s: float = 30.0) -> Acknowledged:
        """The next one."""
        seen = len(self.acknowledged)
        try:
            until(lambda: self._alive() and len(self.acknowledged) > seen, "a write is acknowledged", within_s)
        except Failed as error:
            raise Failed(f"{error}; the writers were told {dict(self.told)}") from None
        return self.acknowledged[seen]

    def _alive(self) -> bool:
        assert all(thread.is_alive() for thread in self._threads), "a writer broke: see its traceback"
        return True

    def longest_gap_s(self, since: float) -> float:
        """Between two acknowledgements that follow each other, since then and until now."""
        times = [since, *sorted(each.at for each in tuple(self.acknowledged) if each.at > since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def unexpected(self) -> dict[str, int]:
        """Answers that no fault explains."""
        allowed = {str(status) for status in self.expected}
        return {answer: count for answer, count in self.told.items() if answer.isdigit() and answer not in allowed}

    def _write(self, number: int) -> None:
        at, count = number, 0
        while not self._end.is_set():
            if not self._go.is_set():
                self._resting.add(number)
                self._go.wait(0.1)
                continue
            self._resting.discard(number)
            count += 1
            title = f"storm-{number}-{count}"
            self.tried.add(title)
            while not self._end.is_set():
                rev = self._ask(self._machines[at % len(self._machines)], title)
                if rev:
                    self.acknowledged.append(Acknowledged(title, rev, time.monotonic()))
                    break
                at += 1
                time.sleep(self._pause_s)
            time.sleep(self._pause_s)

    def _ask(self, machine: Machine, title: str) -> int:
        """The rev; 0 when it was not acknowledged."""
        host = machine.address
        for _ in range(2):  # the one that was asked, and the one that it names
            try:
                status, fields = self._put(host, title)
            except (OSError, http.client.HTTPException) as error:
                self.told[type(error).__name__] += 1
                return 0
            if status == 200:
                return int(fields["piccolo-rev"])
            self.told[str(status)] += 1
            if status != 307:
                return 0
            host = str(urlsplit(fields["location"]).hostname)
        return 0

    def _put(self, host: str, title: str) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(host, API_PORT, timeout=_CONNECT_S)
        try:
            connection.connect()
            connection.sock.settimeout(_PATIENCE_S)
            headers = {"Content-Type": "application/json", "Authorization": self.bearer, "Idempotency-Key": title}
            connection.request("PUT", "/api/v1/settings", json.dumps({"title": title}), headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
