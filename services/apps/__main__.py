"""The apps module. Started by the supervisor with its end of the pair."""

from __future__ import annotations

from piccolod.link import Link
from piccolod.module import run
from services.apps.service import Service


def main(link: Link) -> None:
    run(link, Service)
