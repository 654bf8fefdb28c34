from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from piccolod.cli.main import run
from tests.unit.cli.api_double import ApiDouble, serving


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Ctl = Callable[..., Done]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: a unix socket's path has 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="ctl-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def double(folder: Path) -> Iterator[ApiDouble]:
    with serving(ApiDouble(), folder / "api.sock") as made:
        yield made


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("PICCOLO", "_PICCOLO")) or name == "NO_COLOR":
            monkeypatch.delenv(name)


@pytest.fixture
def ctl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Runs piccoloctl in this process against the double; `stdin` is what is piped in."""

    def call(*args: str, stdin: str | bytes = "", socket: str | None = None) -> Done:
        out, err = _Captured(), _Captured()
        piped = io.TextIOWrapper(io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", piped)
        where = [] if "--url" in args else ["--socket", socket or str(folder / "api.sock")]
        with redirect_stdout(out), redirect_stderr(err):
            code = run([*where, *args])
        return Done(code, out.text(), err.text())

    return call


class _Captured(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        buffer: Any = self.buffer
        return str(buffer.getvalue().decode())


APP: dict[str, Any] = {
    "name": "hello",
    "title": "Hello",
    "policy": "follower_proxy",
    "state": "running",
    "reason": "",
    "desired": "running",
    "enabled": True,
    "generation": 1,
    "image": "localhost/piccolo-demo:1",
    "image_id": "sha256:aaaa",
    "leader": {"node": "n1", "address": "127.0.0.1", "epoch": 3},
    "nodes": {"n1": {"state": "running", "reason": "", "container_id": "c1"}},
    "listeners": [{"name": "web", "guest_port": 80, "public_port": 35000, "flow": "tcp", "protocol": "http"}],
    "volumes": [],
    "warnings": [],
    "restarts": 0,
}


@pytest.fixture
def app() -> dict[str, Any]:
    return {**APP}
