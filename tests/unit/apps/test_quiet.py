"""The silence around a lock: its rules, and that a restart does not end it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from piccolod import clock
from services.apps import quiet
from services.apps.quiet import NONE, PATIENCE_S, Quiet
from services.apps.silence import Silence


def test_it_holds_from_the_wish_until_the_unlock_that_follows_the_lock() -> None:
    assert not NONE.holds(0.0)
    wished = quiet.after_news(quiet.begun(NONE, 10.0, locked=False), 10.1, locked=False)
    assert wished.holds(10.1), "an unlocked store is no news before the lock"
    locked = quiet.after_news(wished, 11.0, locked=True)
    assert locked.holds(10.0 + 100 * PATIENCE_S)
    assert not quiet.after_news(locked, 5000.0, locked=False).holds(5000.0)


def test_without_a_lock_it_ends_by_itself() -> None:
    assert not quiet.begun(NONE, 10.0, locked=False).holds(10.0 + PATIENCE_S)


def test_a_lock_that_nobody_announced_silences_nobody() -> None:
    assert not quiet.after_news(NONE, 1.0, locked=True).holds(1.0)


def test_a_second_wish_after_the_lock_waits_for_the_unlock_as_well() -> None:
    assert quiet.begun(Quiet(10.0, locked=True), 20.0, locked=False).locked


def test_a_lock_that_failed_ends_it_unless_it_came_all_the_same() -> None:
    wished = quiet.begun(NONE, 10.0, locked=False)
    assert not quiet.called_off(wished).holds(10.0)
    assert quiet.called_off(quiet.after_news(wished, 10.0, locked=True)).holds(10.0)


def test_a_lock_that_failed_does_not_call_off_the_silence_of_another() -> None:
    first = quiet.begun(NONE, 10.0, locked=False, wish="first")
    second = quiet.begun(first, 11.0, locked=False, wish="second")
    assert quiet.called_off(second, "first").holds(12.0)
    assert not quiet.called_off(second, "second").holds(12.0)
    heard = quiet.resumed(quiet.after_news(second, 11.0, locked=False), 11.0)
    assert quiet.called_off(heard, "first").holds(12.0), "news and a restart change nothing in that"


def test_a_former_life_gives_no_more_patience_than_there_is() -> None:
    assert quiet.resumed(Quiet(1e9), 5.0) == Quiet(5.0 + PATIENCE_S)


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    return tmp_path / "silence.json"


def test_it_survives_a_restart_at_any_point_before_the_unlock(file: Path) -> None:
    Silence(file).begin("a", locked=False)
    assert Silence(file).holds()
    Silence(file).lock_is(False)
    assert Silence(file).holds()
    Silence(file).lock_is(True)
    after = Silence(file)
    assert after.holds()
    after.lock_is(False)
    assert not after.holds() and not Silence(file).holds()
    assert not file.exists()


def test_it_survives_a_restart_no_longer_than_without_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Silence(file).begin("a", locked=False)
    later = clock.now() + PATIENCE_S
    monkeypatch.setattr(clock, "now", lambda: later)
    assert not Silence(file).holds()


def test_a_lock_that_failed_leaves_nothing_behind(file: Path) -> None:
    silence = Silence(file)
    silence.begin("a", locked=False)
    silence.call_off("a")
    assert not Silence(file).holds() and not file.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"boot_id": "x"}', b"[" * 5000])
def test_garbage_is_no_silence(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert not Silence(file).holds()


def test_the_silence_of_another_boot_is_over(file: Path) -> None:
    Silence(file).begin("a", locked=True)
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot_id": "another"}))
    assert not Silence(file).holds()
