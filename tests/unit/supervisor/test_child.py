"""A life ends once, and always."""

from __future__ import annotations

from pathlib import Path

import pytest

from piccolod.pulse import PulseReader
from piccolod.supervisor.child import Life
from piccolod.supervisor.logs import LogPipe
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.reaper import Ending, Reaper


def test_it_ends_though_its_last_words_cannot_be_borne(tmp_path: Path) -> None:
    loop = Loop(lambda error: None)
    ends: list[Ending] = []

    def fails(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    class Silent:
        def add(self, *_: object) -> None: ...

    pipe = LogPipe(loop, Silent(), lambda _: None)  # type: ignore[arg-type]
    life = Life(loop, Reaper(loop), pipe, PulseReader(), "i", fails, lambda _: None, lambda _, ending: ends.append(ending))
    theirs = life._pair()
    from piccolod.link import Link

    other = Link(theirs)
    other.receive()
    other.send({"t": "READY"})
    with pytest.raises(RuntimeError):
        life._ended(Ending(code=1))
    assert ends == [Ending(code=1)] and life.ended
    other.close()
    loop.close()
