"""Whether this node is alone or a member of a cluster: one file, and its rename is the moment at which that changes.

`state_dir/cluster/mode` is written last by `cluster init` and `cluster join`. A folder without it is what a crash left of one
of them: nothing of it counts. consensus and persistence read it when they start, and never again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from piccolod import durable
from piccolod.errors import Invalid, Unavailable

FORMAT: Final = 1
# Modules with users of their own read in it; what is secret in it is shut by the modes of the files themselves.
FOLDER_MODE: Final = 0o755


Keeping = Literal["managed", "external"]


class Mode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This node is `node` of `cluster`, whose leadership lives in etcd.

    `etcd`: managed, its members are kept by the nodes; external, it is an owner's, and `rpc`, the address that this node became
    a member with, tells it from another machine of its name.
    """

    format: int = FORMAT
    mode: Literal["etcd"] = "etcd"
    cluster: str
    node: str
    since_ms: int
    etcd: Keeping = "managed"
    rpc: str = ""

    @property
    def is_external(self) -> bool:
        return self.etcd == "external"


def load(folder: Path) -> Mode | None:
    """None: this node is alone. Raises Invalid for a file that is none of ours, Unavailable when it cannot be read."""
    file = folder / "mode"
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unavailable(f"{file}: {error.strerror}", hint="see the disk") from error
    try:
        mode = msgspec.json.decode(raw, type=Mode)
    except msgspec.MsgspecError as error:
        raise Invalid(f"{file} is damaged: {error}", hint="restore it from a backup, or join this node again") from error
    if mode.format != FORMAT:
        raise Invalid(f"{file} has the format {mode.format} of a newer piccolod", hint="install that version again")
    return mode


def make_folder(folder: Path) -> None:
    """Raises OSError. The mode does not hang on the umask."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, FOLDER_MODE)


def enter(folder: Path, mode: Mode) -> None:
    """From now on this node is a member: durable when this returns. Raises OSError; then `load` tells whether it is."""
    durable.replace(folder / "mode", msgspec.json.encode(mode), mode=0o644)


def leave(folder: Path) -> None:
    """From now on this node is alone: durable when this returns. Raises OSError."""
    (folder / "mode").unlink(missing_ok=True)
    durable.sync_folder(folder)
