"""A restart gives nobody fresh guesses, and no file can keep the owner out."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from piccolod import clock
from piccolod.errors import TooMany
from services.persistence.guesses import FILE_LIMIT_BYTES, Guesses
from services.persistence.limiter import PER_SOURCE, SOURCES_KEPT


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    return tmp_path / "counts.json"


def use_up(guesses: Guesses, source: str = "192.0.2.7") -> None:
    for _ in range(PER_SOURCE.free):
        guesses.admit(source)


def rewritten(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_was_charged_is_still_charged_in_the_next_life(file: Path) -> None:
    use_up(Guesses(file))
    with pytest.raises(TooMany):
        Guesses(file).admit("192.0.2.7")
    Guesses(file).admit("192.0.2.8")


def test_an_attempt_that_the_process_died_in_was_charged_before_it_was_made(file: Path) -> None:
    for _ in range(PER_SOURCE.free):
        Guesses(file).admit("uid:0")
    with pytest.raises(TooMany):
        Guesses(file).admit("uid:0")


def test_a_right_guess_is_remembered_too(file: Path) -> None:
    guesses = Guesses(file)
    for _ in range(PER_SOURCE.free - 1):
        guesses.admit("uid:0")
    guesses.right("uid:0")
    use_up(Guesses(file), "uid:0")


def test_the_file_is_for_its_owner_alone_and_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guesses, now = Guesses(file), clock.now()
    for number in range(SOURCES_KEPT + 20):
        monkeypatch.setattr(clock, "now", lambda number=number: now + 40 * number)
        guesses.admit(f"{number} " + "x" * 4000)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_size < FILE_LIMIT_BYTES
    assert len(json.loads(file.read_text())["counts"]["sources"]) == SOURCES_KEPT
    assert list(file.parent.iterdir()) == [file]


def test_another_boot_begins_afresh(file: Path) -> None:
    use_up(Guesses(file))
    rewritten(file, boot_id="another")
    Guesses(file).admit("192.0.2.7")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[1]", b"\xff" * 100, b'{"boot_id": 5}', b"x" * (FILE_LIMIT_BYTES + 1), b"[" * 5000]
)
def test_garbage_is_as_good_as_nothing(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    use_up(Guesses(file))
    with pytest.raises(TooMany):
        Guesses(file).admit("192.0.2.7")


def test_no_file_makes_a_penalty_longer_than_its_rule(file: Path) -> None:
    use_up(Guesses(file))
    far = [10**30, 1e300, 1e300]
    rewritten(file, counts={"all": far, "sources": [["192.0.2.7", far]]})
    with pytest.raises(TooMany) as caught:
        Guesses(file).admit("192.0.2.7")
    assert caught.value.retry_after_s is not None and caught.value.retry_after_s <= PER_SOURCE.most_s


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_file_of_somebody_else_or_a_link_is_not_read(file: Path) -> None:
    use_up(Guesses(file))
    os.chown(file, 12345, -1)
    Guesses(file).admit("192.0.2.7")
    os.chown(file, 0, -1)
    file.rename(file.with_name("real"))
    file.symlink_to(file.with_name("real"))
    Guesses(file).admit("192.0.2.7")


def test_a_folder_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    guesses = Guesses(tmp_path / "absent" / "counts.json")
    use_up(guesses)
    with pytest.raises(TooMany):
        guesses.admit("192.0.2.7")
