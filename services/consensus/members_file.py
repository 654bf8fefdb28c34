"""What a member knows of its cluster when it starts: the others, and the constants of time.

`members.json` is a cache of `node/*` of the last life, for a start beside an etcd of its own that does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping

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
    try:
        return msgspec.json.decode((paths.cluster / "members.json").read_bytes(), type=dict[str, KnownMember])
    except (OSError, msgspec.MsgspecError):
        return {}


def write(paths: Paths, members: Mapping[str, KnownMember]) -> None:
    """Whole or not at all. Raises OSError."""
    durable.replace(paths.cluster / "members.json", msgspec.json.format(msgspec.json.encode(members)), mode=0o644)


def timing_of(paths: Paths) -> Timing:
    """The cluster's constants. Raises Invalid for a file that is none of ours, and as `timing.founded`."""
    file = paths.cluster / "timing.json"
    try:
        found = msgspec.json.decode(file.read_bytes(), type=cluster.Timing)
    except (OSError, msgspec.MsgspecError) as error:
        raise Invalid(f"{file} says no timing: {error}", hint="restore it from another member") from error
    return timing.founded(found.profile, found.stop_s)
