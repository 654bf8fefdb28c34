from __future__ import annotations

import statistics
import time

import pytest

from piccolod import clock
from piccolod.errors import TermOver
from piccolod.leadership.gate import Gate, Shut, Token
from piccolod.leadership.page import PageReader, PageWriter, Term
from piccolod.paths import Paths

from .conftest import a_page


@pytest.fixture
def gate(paths: Paths, page_writer: PageWriter) -> Gate:
    return Gate(PageReader(paths.page))


def why_shut(gate: Gate, resource: str = "app:a") -> str:
    with pytest.raises(TermOver) as over:
        gate.check(resource)
    assert over.value.resource == resource and not gate.holds(resource)
    return over.value.reason


def test_an_open_term_gives_its_token(gate: Gate, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:a": Term(7, 3)}))
    assert gate.check("app:a") == Token(gen=1, epoch=3, token=7)
    assert gate.holds("app:a")


def test_a_resource_that_is_not_on_the_page_is_not_led(gate: Gate, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:ab": Term(7, 3)}))
    assert why_shut(gate, "app:a") == Shut.NOT_LED


def test_a_closing_term_is_over(gate: Gate, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:a": Term(7, 3, closing=True)}))
    assert why_shut(gate) == Shut.CLOSING


def test_a_passed_deadline_is_the_end_without_anyone_saying_so(gate: Gate, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:a": Term(7, 3)}, hard_at=clock.now() + 0.05))
    assert gate.holds("app:a")
    while gate.holds("app:a"):
        pass
    assert why_shut(gate) == Shut.LATE


def test_a_page_of_another_boot_is_not_believed(gate: Gate, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:a": Term(7, 3)})._replace(boot_id="0" * 36))
    assert why_shut(gate) == Shut.OTHER_BOOT


def test_an_absent_page_shuts_the_gate(gate: Gate, page_writer: PageWriter, paths: Paths) -> None:
    page_writer.write(a_page({"app:a": Term(7, 3)}))
    assert gate.holds("app:a")
    paths.page.unlink()
    assert why_shut(gate) == Shut.NO_PAGE


def test_a_page_with_both_slots_torn_shuts_the_gate(gate: Gate, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:a": Term(7, 3)}))
    page_writer.write(a_page({"app:a": Term(7, 3)}))
    page_writer._map[4096 + 8 : 4096 + 12] = b"torn"
    second = 4096 + (len(page_writer._map) - 4096) // 2
    page_writer._map[second + 8 : second + 12] = b"torn"
    assert why_shut(gate) == Shut.NO_PAGE


def test_a_new_term_is_not_the_one_that_began_the_work(gate: Gate, page_writer: PageWriter) -> None:
    page_writer.write(a_page({"app:a": Term(7, 3)}))
    token = gate.check("app:a")
    gate.still("app:a", token)
    page_writer.write(a_page({"app:a": Term(8, 4)}))
    with pytest.raises(TermOver, match="another term"):
        gate.still("app:a", token)


def test_a_check_takes_microseconds(gate: Gate, page_writer: PageWriter) -> None:
    page_writer.write(a_page({f"app:a{i}": Term(i + 1, 1) for i in range(1000)}))
    rounds = []
    for _ in range(20):
        started = time.thread_time()
        for _ in range(500):
            gate.check("app:a500")
        rounds.append((time.thread_time() - started) / 500)
    assert statistics.median(rounds) <= 20e-6, f"{statistics.median(rounds) * 1e6:.1f} us"
