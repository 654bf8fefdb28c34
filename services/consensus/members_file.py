"""What a member knows of its cluster when it starts: the others, and the constants of time.

`members.json` is a cache of `node/*` of the last life, for a start beside an etcd of its own that does not answer.
`former.json` has those whom a recovery here made none of any more: one of them may have been recovered as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from piccolod import durable
from piccolod.errors import Invalid
from piccolod.leadership import timing
from piccolod.leadership.timing import Timing
from piccolod.paths import Paths
from piccolod.protocol import cluster
from piccolod.protocol.cluster import KnownMember


def read(paths: Paths) -> dict[str, KnownMember]:
    """Empty where there is none, or none that can be read."""
    return _read(paths.cluster / "members.json")


def write(paths: Paths, members: Mapping[str, KnownMember]) -> None:
    """Whole or not at all. Raises OSError."""
    _write(paths.cluster / "members.json", members)


def begin_anew(paths: Paths, members: Mapping[str, KnownMember]) -> None:
    """The others become former ones, first: done again after a crash it does the same. Raises OSError."""
    _write(_former(paths), {name: each for name, each in with_former(paths).items() if name not in members})
    write(paths, members)


def with_former(paths: Paths) -> dict[str, KnownMember]:
    """Who joined anew is where he is now."""
    return {**_read(_former(paths)), **read(paths)}


def _former(paths: Paths) -> Path:
    return paths.cluster / "former.json"


def _read(file: Path) -> dict[str, KnownMember]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, KnownMember])
    except (OSError, msgspec.MsgspecError):
        return {}


def _write(file: Path, members: Mapping[str, KnownMember]) -> None:
    durable.replace(file, msgspec.json.format(msgspec.json.encode(members)), mode=0o644)


def timing_of(paths: Paths) -> Timing:
    """The cluster's constants. Raises Invalid for a file that is none of ours, and as `timing.founded`."""
    file = paths.cluster / "timing.json"
    try:
        found = msgspec.json.decode(file.read_bytes(), type=cluster.Timing)
    except (OSError, msgspec.MsgspecError) as error:
        raise Invalid(f"{file} says no timing: {error}", hint="restore it from another member") from error
    return timing.founded(found.profile, found.stop_s)
