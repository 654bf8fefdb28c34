"""Entry point of the api module. The routes are built by this import, in the zygote: each life starts with them."""

from __future__ import annotations

from piccolod.link import Link
from piccolod.module import run
from services.api.service import Service


def main(link: Link) -> None:
    run(link, Service)
