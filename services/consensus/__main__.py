"""Entry point of the consensus module."""

from __future__ import annotations

from piccolod.link import Link
from piccolod.module import run
from services.consensus.service import Service


def main(link: Link) -> None:
    run(link, Service)
