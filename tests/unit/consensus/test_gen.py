"""No pair (gen, epoch) ever names two terms, whatever was lost, removed or set back in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolod import clock
from piccolod.errors import StoreUnavailable
from piccolod.leadership.roles import Reason
from services.consensus.gen import RANDOM_BITS, GenFile, gen_above
from services.consensus.static_leaser import StaticLeaser
from services.consensus.term_store import set_aside

from .nodes import Node


async def first_term(leaser: StaticLeaser) -> tuple[int, int]:
    record = await leaser.campaign("app:a", Reason.BOOTSTRAP)
    return record.gen, record.epoch


def damage(node: Node) -> None:
    for file in node.file.parent.glob("terms.db-*"):
        file.unlink()
    node.file.write_bytes(b"hello\n" * 1000)


def damage_and_tidy(node: Node) -> None:
    """What the health asks for: the damaged store is removed once it was seen."""
    damage(node)
    node.run(first_term)
    for file in set_aside(node.file):
        file.unlink()
    damage(node)


def lose_terms(node: Node) -> None:
    for file in node.file.parent.glob("terms.db*"):
        file.unlink()


def lose_folder(node: Node) -> None:
    lose_terms(node)
    (node.file.parent / "gen").unlink()


@pytest.mark.parametrize("loss", [damage, damage_and_tidy, lose_terms, lose_folder])
def test_a_pair_of_gen_and_epoch_never_comes_again(
    node: Node, loss: Callable[[Node], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [node.run(first_term)]
    for life in range(4):
        loss(node)
        for file in set_aside(node.file):
            file.unlink()
        node.reboot(monkeypatch, f"boot-{life}")  # no page says what was
        seen.append(node.run(first_term))
    assert seen == sorted(set(seen))


def test_a_clock_that_was_set_back_brings_no_lower_gen(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before = node.run(first_term)
    monkeypatch.setattr(clock, "wall_ms", lambda: 1)
    lose_terms(node)
    node.reboot(monkeypatch, "second")
    after = node.run(first_term)
    assert after > before
    (node.file.parent / "gen").unlink()
    lose_terms(node)
    assert node.run(first_term) > after, "the page of this boot knows it too"


def test_a_store_of_before_keeps_its_gen_and_is_the_floor_of_the_next(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    gen, _ = node.run(first_term)
    (node.file.parent / "gen").unlink()
    assert node.run(first_term) == (gen, 1)
    assert GenFile(node.file.parent / "gen").floor() == gen


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"-5", b"9" * 30, b"nonsense", b"\xff\xfe"])
def test_a_floor_that_says_nothing_stops_nobody(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "gen"
    file.write_bytes(content)
    gens = GenFile(file)
    assert gens.floor() == 0
    first = gens.next(0)
    assert first.bit_length() < 63 and gens.floor() == first < gens.next(0)


def test_a_gen_whose_floor_cannot_be_kept_is_not_given(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="gone"):
        GenFile(tmp_path / "gone" / "gen").next(0)


@given(st.integers(0, 2**60), st.integers(0, 2**41 - 1), st.integers(0, 2**RANDOM_BITS - 1))
def test_a_gen_is_above_its_floor_and_not_before_its_time(floor: int, wall_ms: int, noise: int) -> None:
    gen = gen_above(floor, wall_ms, noise)
    assert floor < gen < 2**63
    assert gen >> RANDOM_BITS >= wall_ms
