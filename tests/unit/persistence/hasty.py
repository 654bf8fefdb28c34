"""persistence as it is, in a hurry: it verifies itself all the time instead of every five minutes, and its passwords are cheap,
so that a kill in the middle of a change meets the file more often than the key derivation."""

from __future__ import annotations

from piccolod.link import Link
from services.persistence import service, tuning
from services.persistence.__main__ import main as begin

from .conftest import CHEAP


def main(link: Link) -> None:
    service.CHECK_S = 0.1  # type: ignore[misc]
    tuning.tune = lambda *_: CHEAP  # type: ignore[assignment]
    begin(link)
