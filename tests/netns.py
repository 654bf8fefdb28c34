"""Network namespaces that containers had: what a podman that was killed in the middle of a start leaves on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_FOLDER: Final = Path("/run/netns")


def _names() -> set[str]:
    """Those of podman: it names them netns-<uuid>."""
    return {path.name for path in _FOLDER.glob("netns-*")}


_BEFORE: Final = _names()  # not ours


def remove_left() -> None:
    """Those that came since the tests began and have no process any more."""
    lived_in = set(_lived_in())
    for name in _names() - _BEFORE:
        path = _FOLDER / name
        with suppress(FileNotFoundError):
            if path.stat().st_ino not in lived_in:
                subprocess.run(["umount", path], capture_output=True, check=False)
                path.unlink()


def _lived_in() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                yield (entry / "ns" / "net").stat().st_ino
