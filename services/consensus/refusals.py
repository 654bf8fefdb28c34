"""What is told to who asks for leadership, or for a write, in vain: who leads instead, or what is in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from piccolod import clock
from piccolod.errors import LeaderHint, NoLeader, NotLeader, PiccoloError, StoreRestored, StoreUnavailable
from piccolod.leadership.actions import RESTORED_HINT, Ended
from piccolod.leadership.resources import app_of
from piccolod.leadership.timing import POLL_S
from services.consensus import standing
from services.consensus.driver import Driver
from services.consensus.leaser import Place

NO_QUORUM: Final = "etcd does not answer, or has no quorum"
NO_QUORUM_HINT: Final = "where the others are lost for good, `piccoloctl cluster recover` says what can be kept"
_ANEW_HINT: Final = "it leads nothing here; `piccoloctl cluster leave --force`, then join it anew"


class Refusals:
    """Read from the core's state, and changes nothing. `place`: where a node is found."""

    def __init__(self, driver: Driver, node: str, place: Callable[[str], Place]) -> None:
        self._driver = driver
        self._node: Final = node
        self._place = place

    def fresh(self) -> bool:
        """etcd's quorum has answered lately."""
        return clock.now() - self._driver.heard_at <= self._patience_s()

    def has_just_begun(self) -> bool:
        """etcd has not been heard in this life, nor had the time to answer: that it is silent tells nothing yet."""
        driver = self._driver
        return driver.heard_at < driver.began_at and clock.now() - driver.began_at <= self._patience_s()

    def _patience_s(self) -> float:
        """Two polls, each as slow as it may be."""
        return 2 * (POLL_S + self._driver.state.config.timing.rpc_s)

    def hint(self, resource: str) -> LeaderHint | None:
        """Which other node leads it; None when none does, or this node cannot know."""
        state = self._driver.state
        node = standing.holder(state, resource)
        if node in ("", self._node) or state.restored or not self.fresh():
            return None
        place, epoch = self._place(node), self._driver.state.view.epochs[resource]
        return LeaderHint(node, place.address, place.url, epoch.value.epoch)

    def not_leader(self, resource: str) -> PiccoloError:
        hint = self.hint(resource)
        if hint is None:
            return NotLeader(f"this node does not lead {resource} now", hint="see `piccoloctl leaders list`")
        return NotLeader(f"{hint.node} leads {resource}", hint=f"ask {hint.node}", leader=hint)

    def no_leader(self, resource: str) -> PiccoloError:
        state = self._driver.state
        if state.restored:
            return restored(self._driver)
        if self._driver.blocked:
            return StoreUnavailable(self._driver.blocked, hint="see the disk")
        if not self.fresh():
            return StoreUnavailable(NO_QUORUM, hint=NO_QUORUM_HINT)
        if state.session is None:
            return NoLeader(f"nobody leads {resource}, and this node has no session yet", hint="try again in a moment")
        if state.paused:
            return NoLeader(f"nobody leads {resource}, and the cluster is paused", hint="`piccoloctl cluster resume`")
        if self._node in self._driver.facts.drained:
            return NoLeader(
                f"nobody leads {resource}, and this node is drained", hint=f"`piccoloctl nodes undrain {self._node}`"
            )
        return NoLeader(f"nobody leads {resource} now", hint=f"see `piccoloctl why {app_of(resource) or resource}`")


def restored(driver: Driver) -> StoreRestored:
    """Why this node believes nothing of its etcd."""
    if driver.succeeded_by:
        return StoreRestored(f"the cluster was recovered on {driver.succeeded_by}, without this node", hint=_ANEW_HINT)
    return StoreRestored(Ended.RESTORED.value, hint=RESTORED_HINT)
