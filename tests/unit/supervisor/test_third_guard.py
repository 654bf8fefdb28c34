"""The third guard keeps the deadline page where everybody looks for it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from piccolod.leadership.page import PageReader
from tests.unit.supervisor.conftest import row, wait_for

TABLE = [row("broker"), row("consensus", needs=["broker"]), row("m", needs=["broker"])]


def scribble(path: Path) -> None:
    """The header stays, both states are gone."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


LOSSES = {
    "removed": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "moved": lambda path: path.rename(path.with_name("elsewhere")),
    "scribbled": scribble,
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())
def test_a_lost_page_is_made_anew_and_consensus_alone_is_restarted_for_it(make_node, lose):
    node = make_node(TABLE).start()
    before = {name: each["pid"] for name, each in node.modules().items()}
    reader = PageReader(node.paths.page)
    assert reader.read() is not None
    lose(node.paths.page)
    node.wait_replaced("consensus", before["consensus"], timeout_s=3.0)
    page = reader.read()
    assert page is not None and not page.terms
    assert node.module("consensus")["restarts"] == 1
    after = {name: each["pid"] for name, each in node.modules().items()}
    assert {**after, "consensus": 0} == {**before, "consensus": 0}
    assert "the deadline page was lost" in node.stderr()


def test_a_page_that_is_taken_away_again_and_again_costs_a_restart_a_second_at_most(make_node):
    node = make_node(TABLE).start()

    def taken() -> bool:
        node.paths.page.unlink(missing_ok=True)
        return node.stderr().count("the deadline page was lost") >= 3

    wait_for(taken, "three times", timeout_s=6.0)
    at = [float(line.split()[0][-7:-1]) for line in node.stderr().splitlines() if "the deadline page was lost" in line]
    assert all((later - earlier) % 60 > 0.95 for earlier, later in itertools.pairwise(at)), at
    wait_for(lambda: node.paths.page.exists(), "and it is there in the end")
    node.wait_ready()


def test_where_the_page_cannot_be_made_the_supervisor_goes_on_and_tries_again(make_node):
    node = make_node(TABLE).start()
    node.paths.page.unlink()
    node.paths.page.mkdir()
    wait_for(lambda: "the deadline page cannot be made" in node.stderr(), "it says so", timeout_s=3.0)
    assert node.module("m")["state"] == "ready"
    node.paths.page.rmdir()
    wait_for(lambda: node.paths.page.is_file(), "it is made when it can be", timeout_s=3.0)
