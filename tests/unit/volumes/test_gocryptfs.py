"""How a gocryptfs is prepared before it is given the key."""

from __future__ import annotations

import resource

import pytest

from services.volumes import gocryptfs


def test_a_limit_that_cannot_be_set_keeps_none_of_the_others_from_being_set(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def limit(pid: int, what: int, *wanted: tuple[int, int]) -> tuple[int, int]:
        if what == resource.RLIMIT_CORE:
            raise PermissionError
        if wanted:
            done.append(what)
        return 1024, 4096

    monkeypatch.setattr(resource, "prlimit", limit)
    gocryptfs._prepare(0)
    assert done == [resource.RLIMIT_NOFILE]
