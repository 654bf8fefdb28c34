"""The labels of a container: whose it is and under which term it was made, readable after any crash of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

PREFIX: Final = "io.piccolo."
NODE_LABEL: Final = PREFIX + "node"


class Badge(msgspec.Struct, frozen=True, kw_only=True):
    """`spec` is the digest of everything that makes the container what it is, but its term. `led` false: token is 0."""

    cluster: str
    node: str
    app: str
    epoch: int
    generation: int
    token: int
    spec: str

    def labels(self) -> dict[str, str]:
        return {PREFIX + key: str(value) for key, value in msgspec.structs.asdict(self).items()}


def read(labels: Mapping[str, str] | None) -> Badge | None:
    """`None` when they are not piccolod's."""
    found = {key.removeprefix(PREFIX): value for key, value in (labels or {}).items() if key.startswith(PREFIX)}
    try:
        return msgspec.convert(found, Badge, strict=False)
    except msgspec.ValidationError:
        return None


def container_name(app: str) -> str:
    return f"piccolo-{app}"
