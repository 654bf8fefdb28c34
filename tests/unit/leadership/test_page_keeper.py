"""Whatever happens to the file of the page: readers fail closed, none dies of it, and the new one is seen by all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from piccolod.leadership.page import PageReader, PageWriter, Term
from piccolod.leadership.page_keeper import PageKeeper
from piccolod.paths import Paths

from .conftest import a_page


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(100))


def _another(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


LOSSES = {
    "removed": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "cut short": lambda path: os.truncate(path, 6000),
    "moved": lambda path: path.rename(path.with_name("elsewhere")),
    "overwritten": _overwrite,
    "another": _another,
}


@pytest.fixture
def keeper(paths: Paths) -> Iterator[PageKeeper]:
    made = PageKeeper(paths.page)
    yield made
    made.close()


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())
def test_a_lost_page_is_noticed_and_the_new_one_is_what_everybody_reads(
    paths: Paths, keeper: PageKeeper, lose: Callable[[Path], object]
) -> None:
    writer = PageWriter(paths.page)
    writer.write(a_page({"app:a": Term(1, 1)}))
    reader = PageReader(paths.page)
    assert reader.read() is not None and keeper.lost() == ""
    lose(paths.page)
    assert keeper.lost()
    keeper.renew()
    assert keeper.lost() == ""
    page = reader.read()
    assert page is not None and not page.terms, "whoever had the lost one open has the new one now"
    second = PageWriter(paths.page)  # the first one's lock is no longer in the way
    second.write(a_page({"app:a": Term(2, 1)}))
    page = reader.read()
    assert page is not None and page.terms == {"app:a": Term(2, 1)}
    second.close()
    writer.close()


@pytest.mark.parametrize("size", [0, 100, 4096, 5000, 100_000])
def test_a_page_cut_short_under_its_readers_is_absent_and_ends_nobody(paths: Paths, keeper: PageKeeper, size: int) -> None:
    """In a process of its own: the other way to find out is SIGBUS."""
    writer = PageWriter(paths.page)
    writer.write(a_page({f"app:a{i}": Term(i, 1) for i in range(1000)}))
    pid = os.fork()
    if pid == 0:
        try:
            reader = PageReader(paths.page)
            before = reader.read()
            os.truncate(paths.page, size)
            os._exit(0 if before is not None and reader.read() is None else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    writer.close()


def test_a_page_that_is_cut_short_between_two_reads_of_it_is_absent(
    paths: Paths, keeper: PageKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = PageReader(paths.page)
    assert reader.read() is not None
    monkeypatch.setattr(reader, "_is_there", lambda: True)  # as if it was whole when that was asked
    os.truncate(paths.page, 0)
    assert reader.read() is None


def test_a_page_zeroed_in_place_is_not_believed_from_memory(paths: Paths, keeper: PageKeeper) -> None:
    writer = PageWriter(paths.page)
    writer.write(a_page({"app:a": Term(1, 1)}))
    reader = PageReader(paths.page)
    assert reader.read() is not None
    size = paths.page.stat().st_size
    with paths.page.open("r+b") as file:
        file.write(bytes(size))
    assert reader.read() is None
    writer.close()
