"""Entry point of the persistence module."""

from __future__ import annotations

from piccolod.link import Link
from piccolod.module import run
from services.persistence.service import Service


def main(link: Link) -> None:
    run(link, Service)
