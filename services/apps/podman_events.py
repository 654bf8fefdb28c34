"""podman's event stream: hints that something happened to a container or an image, resumed for ever.

Read by the event loop itself and not by podman-py: a stream that never ends must be cancelled at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

_LINE_BYTES: Final = 1 << 20
_AGAIN_S: Final = 1.0
_CONTAINER: Final = frozenset({"died", "exited", "start", "remove", "oom", "kill", "stop", "pause", "unpause"})
_IMAGE: Final = frozenset({"pull", "tag", "untag", "loadfromarchive", "load", "import", "build", "remove", "save"})


async def watch(socket: Path, container: Callable[[str], None], images: Callable[[], None], resync: Callable[[], None]) -> None:
    """Calls `container(app)` and `images()`; `resync()` after each connection, for what was missed before it."""
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=_LINE_BYTES)
        except OSError:
            await asyncio.sleep(_AGAIN_S)
            continue
        try:
            filters = quote(json.dumps({"type": ["container", "image"]}))
            head = f"GET /v4.0.0/libpod/events?stream=true&filters={filters} HTTP/1.1\r\nHost: podman\r\n\r\n"
            writer.write(head.encode())
            await reader.readuntil(b"\r\n\r\n")
            resync()
            while line := await reader.readline():
                _tell(line, container, images)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
        await asyncio.sleep(_AGAIN_S)


def _tell(line: bytes, container: Callable[[str], None], images: Callable[[], None]) -> None:
    """One line of the body: a chunk's length, or an event."""
    event = _event(line)
    action = str(event.get("Action") or event.get("status") or "")
    if event.get("Type") == "image" and action in _IMAGE:
        images()
    elif event.get("Type") == "container" and action in _CONTAINER:
        attributes = (event.get("Actor") or {}).get("Attributes") or {}
        if app := attributes.get("io.piccolo.app"):
            container(str(app))


def _event(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
