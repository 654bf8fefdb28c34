"""Entry point of the telemetry module."""

from __future__ import annotations

from piccolod.link import Link
from piccolod.module import run
from services.telemetry.service import Service


def main(link: Link) -> None:
    run(link, Service)
