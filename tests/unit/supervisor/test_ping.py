"""A question over a unix socket is answered once, whatever is in its way."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod.supervisor.loop import Loop
from piccolod.supervisor.ping import Ping


@pytest.fixture
def loop() -> Iterator[Loop]:
    errors: list[BaseException] = []
    made = Loop(errors.append)
    yield made
    made.close()
    assert errors == []


def asked(loop: Loop, path: Path) -> list[bytes]:
    answers: list[bytes] = []
    Ping(loop, path, b"GET / HTTP/1.0\r\n\r\n", 1.0, answers.append)
    assert answers == [], "it comes in a later turn"
    for _ in range(5):
        loop.turn(0.05)
    return answers


def test_without_a_descriptor_left_there_is_no_answer_and_no_error(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    assert asked(loop, tmp_path / "nobody") == [b""]


def test_where_nobody_listens_there_is_no_answer(loop: Loop, tmp_path: Path) -> None:
    assert asked(loop, tmp_path / "nobody") == [b""]


def test_the_status_is_the_answer(loop: Loop, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        answers: list[bytes] = []
        Ping(loop, tmp_path / "s", b"GET / HTTP/1.0\r\n\r\n", 5.0, answers.append)
        taken, _ = server.accept()
        taken.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        loop.turn(1.0)
        taken.close()
    assert answers == [b"200"]
