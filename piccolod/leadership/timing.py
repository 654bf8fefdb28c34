"""Every constant of leadership's time, the inequalities between them, and the choice of a profile.

Only spans of CLOCK_BOOTTIME on one machine, in seconds. The letters are those of the refusals:

    L    span_s             a session lives this long after its last heartbeat
    h    beat_s             heartbeats
    M    margin_s           the holder stops this much earlier than L
    G    grace_s            between the polite stop (D_soft) and the hard one (D_hard)
    tau  rpc_s              timeout of one try at etcd
    E    election_s         etcd's election timeout
    F    stop_s             worst hard stop of a container, measured on this node
    g    guard_tick_s       how late a guard may notice a deadline
    s    lateness_s         how late the machine may run a guard that is due
    rho  rate_difference    how much faster one machine's clock may run than another's
    W    wait_s             takers wait this long without a change that they saw
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Final

import msgspec

from piccolod.errors import Failed, Invalid
from piccolod.leadership.guard import GUARD_TICK_S

# Event loops under four CPU hogs on two cores were 13 ms late at worst; guards run at raised priority.
LATENESS_S: Final = 0.1
# The kernel slews a clock by 500 ppm at most: two machines differ by twice that.
RATE_DIFFERENCE: Final = 0.001
# A watch is a hint: the view is read again this often.
POLL_S: Final = 1.0
# A supervisor ticks at each turn of its loop, 10 times a second; four missed are one that cannot act.
SUPERVISOR_STALE_S: Final = 0.4
# From a term's end in the store to the next claim's commit, on a LAN.
_CLAIM_S: Final = 0.05
# Measurements grow: a profile must hold with each of them doubled.
_HEADROOM: Final = 2.0
_ROUNDING: Final = 1e-9


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One consistent set of constants. `checked` refuses one that is not; `L` is the same on all nodes of a cluster."""

    profile: str
    span_s: float
    beat_s: float
    margin_s: float
    grace_s: float
    rpc_s: float
    etcd_heartbeat_s: float
    election_s: float
    stop_s: float = 0.0
    guard_tick_s: float = GUARD_TICK_S
    lateness_s: float = LATENESS_S
    rate_difference: float = RATE_DIFFERENCE

    def hard_at(self, sent_at: float) -> float:
        """D_hard of a session whose last committed heartbeat was *sent* at that time: then everything is killed.

        A stamp at the answer would add the answer's way to the term, which the taker, who counts from the commit, never sees.
        """
        return sent_at + self.span_s - self.margin_s

    def soft_at(self, sent_at: float) -> float:
        """D_soft: then led containers are asked to stop."""
        return self.hard_at(sent_at) - self.grace_s

    @property
    def retry_s(self) -> float:
        """The shortest time between two tries of the same thing."""
        return self.beat_s / 4

    @property
    def lease_ttl_s(self) -> int:
        """The lease publishes and cleans up; it outlives W, so that it never decides who leads."""
        return math.ceil(wait_s(self.span_s, self.rate_difference)) + 1

    @property
    def blip_s(self) -> float:
        """An outage of the store that surely changes nothing, not even a polite stop."""
        return self.span_s - self.margin_s - self.grace_s - self.beat_s - self.rpc_s

    @property
    def crash_to_claim_s(self) -> float:
        """From the loss of a holder's machine to the next claim: typical, for it dies half a heartbeat after its last one."""
        return self.span_s - self.beat_s / 2 + _CLAIM_S

    @property
    def worst_crash_to_claim_s(self) -> float:
        """The same for the worst phase of heartbeats, one missed watch and one lost try of EXPIRE and of CLAIM each."""
        return wait_s(self.span_s, self.rate_difference) + POLL_S + 4 * self.rpc_s

    @property
    def longest_stop_s(self) -> float:
        """The largest F that the margin covers."""
        return self.margin_s - self.guard_tick_s - self.lateness_s - self.rate_difference * self.span_s


def wait_s(span_s: float, rate_difference: float = RATE_DIFFERENCE) -> float:
    """`W`: how long a taker must have seen no change of a session whose owner counts `span_s`."""
    return span_s * (1 + rate_difference)


FAST: Final = Timing(
    profile="fast", span_s=3.0, beat_s=0.5, margin_s=0.6, grace_s=0.3, rpc_s=0.3, etcd_heartbeat_s=0.05, election_s=0.4
)
BALANCED: Final = Timing(
    profile="balanced", span_s=6.0, beat_s=1.0, margin_s=1.5, grace_s=0.5, rpc_s=0.5, etcd_heartbeat_s=0.1, election_s=0.5
)
PATIENT: Final = Timing(
    profile="patient", span_s=20.0, beat_s=4.0, margin_s=4.0, grace_s=3.0, rpc_s=2.0, etcd_heartbeat_s=0.25, election_s=2.5
)
# Fastest first: the order in which `choose` tries them.
PROFILES: Final = MappingProxyType({timing.profile: timing for timing in (FAST, BALANCED, PATIENT)})


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a node measured, in seconds: F, the 99th percentile of an fsync on etcd's disk, the round trip to peers.

    Of an etcd that is not ours a whole commit is measured, as `fsync_s`; `election_s` is its own, not the profile's.
    """

    stop_s: float
    fsync_s: float
    rtt_s: float
    election_s: float = 0.0


class Choice(msgspec.Struct, frozen=True):
    """A profile and the sentence that says why this one."""

    timing: Timing
    why: str


def broken(timing: Timing) -> tuple[str, ...]:
    """The inequalities that the constants break, each with its numbers."""
    t = timing
    return _broken(
        (
            "M >= F + g + s + rho*L", t.margin_s, t.stop_s + t.guard_tick_s + t.lateness_s + t.rate_difference * t.span_s,
            f"{t.stop_s:g} + {t.guard_tick_s:g} + {t.lateness_s:g} + {t.rate_difference:g}*{t.span_s:g}",
        ),
        (
            "L >= M + G + h + 2E + 2*tau", t.span_s, t.margin_s + t.grace_s + t.beat_s + 2 * t.election_s + 2 * t.rpc_s,
            f"{t.margin_s:g} + {t.grace_s:g} + {t.beat_s:g} + 2*{t.election_s:g} + 2*{t.rpc_s:g}",
        ),
        (
            "(L - M)/3 >= h", (t.span_s - t.margin_s) / 3, t.beat_s, f"{t.beat_s:g}",
        ),
    )  # fmt: skip


def unfit(timing: Timing, measured: Measured) -> tuple[str, ...]:
    """Why a machine that measures this cannot keep the profile; empty if it can.

    A commit is two round trips (to the leader, to a follower) and an fsync, and has to fit in one try. etcd's own tuning guide
    asks for an election timeout of ten round trips; a leader that syncs for longer than half of it loses its office. Whether an
    etcd that is not ours can keep its leader is not ours either.
    """
    commit_s = 2 * measured.rtt_s + measured.fsync_s
    timing = msgspec.structs.replace(timing, stop_s=measured.stop_s, election_s=measured.election_s or timing.election_s)
    commits = ("tau >= 2*rtt + fsync", timing.rpc_s, commit_s, f"2*{measured.rtt_s:g} + {measured.fsync_s:g}")
    if measured.election_s:
        return broken(timing) + _broken(commits)
    return broken(timing) + _broken(
        commits,
        ("E >= 10*rtt", timing.election_s, 10 * measured.rtt_s, f"10*{measured.rtt_s:g}"),
        ("E >= 2*fsync", timing.election_s, 2 * measured.fsync_s, f"2*{measured.fsync_s:g}"),
    )


def checked(timing: Timing) -> Timing:
    """The constants themselves. Raises Invalid, which names each broken inequality with its numbers."""
    if found := broken(timing):
        raise Invalid(
            f"the timing {timing.profile!r} does not hold: {'; '.join(found)}",
            hint="take a slower profile, or find out why containers die slowly here" if found[0].startswith("M") else "",
        )
    return timing


def founded(profile: str, stop_s: float) -> Timing:
    """The constants of a cluster that was founded with these. Raises Failed for an unknown profile, Invalid as `checked`."""
    if profile not in PROFILES:
        raise Failed(f"the timing profile {profile!r} of this cluster is not known", hint="install a newer piccolod")
    return checked(msgspec.structs.replace(PROFILES[profile], stop_s=stop_s))


def doubled(measured: Measured) -> Measured:
    """What a profile has to hold with."""
    return Measured(
        stop_s=measured.stop_s * _HEADROOM, fsync_s=measured.fsync_s * _HEADROOM, rtt_s=measured.rtt_s * _HEADROOM,
        election_s=measured.election_s,
    )  # fmt: skip


def choose(measured: Measured) -> Choice:
    """The fastest profile that holds with all three measurements doubled, for `auto`. Raises Invalid if none does."""
    refused: list[str] = []
    for timing in PROFILES.values():
        if not (found := unfit(timing, doubled(measured))):
            fitting = msgspec.structs.replace(timing, stop_s=measured.stop_s)
            return Choice(fitting, f"{timing.profile}: {_figures(measured)}, holds doubled" + "".join(refused))
        refused.append(f"; not {timing.profile}: {found[0]}")
    raise Invalid(
        f"no timing profile holds here: {_figures(measured)}, doubled" + "".join(refused),
        hint="etcd needs a faster disk or network, or containers must die sooner",
    )


def _figures(measured: Measured) -> str:
    return f"F {measured.stop_s * 1000:.3g} ms, fsync p99 {measured.fsync_s * 1000:.3g} ms, rtt {measured.rtt_s * 1000:.3g} ms"


def _broken(*rules: tuple[str, float, float, str]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {have:g} < {text}" + ("" if text == f"{need:g}" else f" = {need:g}")
        for name, have, need, text in rules
        if have < need - _ROUNDING
    )
