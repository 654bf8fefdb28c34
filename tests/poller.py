"""A client that does not let go: what people on the other side of a fault see."""

from __future__ import annotations

import http.client
import threading
import time

from tests.node import until


class Lateness:
    """How late this machine itself was: a thread that asks for 5 ms of sleep and notes how much longer it got.

    What it stole from the test's client it may have stolen from the node too; what it did not steal, the node owes.
    """

    _SLEEP_S = 0.005

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []  # (when the sleep should have ended, when it did), where they differ
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            due = time.monotonic() + self._SLEEP_S
            time.sleep(self._SLEEP_S)
            if (now := time.monotonic()) - due > self._SLEEP_S:
                self._late.append((due, now))

    def within_s(self, began: float, ended: float) -> float:
        """Seconds of that span in which the machine did not run who was due."""
        return sum(max(0.0, min(ended, now) - max(began, due)) for due, now in self._late)


class Poller:
    """A client that asks every 10 ms on a connection of its own each time, and keeps what it saw.

    An answer without `holds` in its body is a failure too.
    """

    def __init__(
        self, port: int, path: str = "/health", timeout_s: float = 5.0, holds: bytes = b"", host: str = "127.0.0.1"
    ) -> None:
        self._host, self._port, self._path, self._timeout_s, self._holds = host, port, path, timeout_s, holds
        self._end = threading.Event()
        self.answers: list[tuple[float, float, str]] = []  # (at, seconds, "200" or what went wrong)
        self.bodies: list[bytes] = []  # of those that went well
        self._lateness = Lateness()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Poller:
        self._lateness.begin()
        self._thread.start()
        until(lambda: self.answers, "the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(self._timeout_s + 5)
        self._lateness.end()

    def _run(self) -> None:
        while not self._end.wait(0.01):
            began = time.monotonic()
            try:
                result = self._ask()
            except (OSError, http.client.HTTPException) as error:
                result = f"{type(error).__name__}: {error}"
            self.answers.append((began, time.monotonic() - began, result))

    def _ask(self) -> str:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("GET", self._path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            return str(response.status)
        if self._holds not in body:
            return f"200 without {self._holds!r}"
        self.bodies.append(body)
        return "200"

    def failures(self) -> list[str]:
        return [result for _, _, result in self.answers if result != "200"]

    def longest_s(self) -> float:
        """The longest that one answer took, less what the machine itself was late meanwhile."""
        return max(seconds - self._lateness.within_s(at, at + seconds) for at, seconds, _ in self.answers)
