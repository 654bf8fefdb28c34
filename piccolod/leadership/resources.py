"""What can be led: the kernel, and each app by its name."""

from __future__ import annotations

from typing import Final

RESOURCE_KERNEL: Final = "kernel"
_APP: Final = "app:"


def resource_for_app(name: str) -> str:
    return _APP + name


def app_of(resource: str) -> str | None:
    """The app's name, or `None` for the kernel and for what is no resource at all."""
    return resource[len(_APP) :] or None if resource.startswith(_APP) else None
