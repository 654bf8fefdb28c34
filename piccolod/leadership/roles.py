"""The words of leadership: what a node is for a resource, and why that changed."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """Unknown counts as follower wherever something is decided."""

    LEADER = "leader"
    FOLLOWER = "follower"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why leadership changed; a claim carries the reason why the term before it ended."""

    BOOTSTRAP = "bootstrap"  # the first term ever
    EXPIRED = "expired"  # the holder's session ended: crash, reboot, cut off
    RELEASED = "released"
    SWITCHOVER = "switchover"
    REBALANCED = "rebalanced"
    DRAIN = "drain"
    UNHEALTHY = "unhealthy"
    LOCKED = "locked"
    STORE_LOSS = "store_loss"
    FENCE_FAILED = "fence_failed"
    FORCED = "forced"
