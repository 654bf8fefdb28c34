"""What the plan of one app looks at, and what it says: pure data, without any rule."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from services.apps.backoff import Failures
from services.apps.badge import Badge
from services.apps.health import Health
from services.apps.podman_status import Status


class State(StrEnum):
    """apps.md, life cycle: what people see."""

    PENDING = "pending"
    PULLING = "pulling"
    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STANDBY = "standby"
    FAILED = "failed"


class Route(StrEnum):
    LOCAL = "local"
    TUNNEL = "tunnel"
    HOLD = "hold"
    CLOSED = "closed"


class Do(StrEnum):
    """What the shell can do. Each is idempotent."""

    FETCH = "fetch"  # in the background: pull or build
    PIN = "pin"  # write the image's id into the document
    CAMPAIGN = "campaign"
    ATTACH = "attach"
    CREATE = "create"
    INIT = "init"
    ARM = "arm"
    START = "start"
    CLOSING = "closing"
    STOP = "stop"
    DISARM = "disarm"
    REMOVE = "remove"
    DETACH = "detach"
    WITHDRAW = "withdraw"
    PROMOTE = "promote"
    GIVE_UP = "give_up"
    PURGE = "purge"
    FORGET = "forget"  # the app is gone: delete its documents


class ImageIs(StrEnum):
    PRESENT = "present"
    ABSENT = "absent"
    FETCHING = "fetching"
    REFUSED = "refused"  # a fetch failed; `image_reason` says why, and it is tried again later


class Image(msgspec.Struct, frozen=True):
    """What is known here of the image of one version. `id` is what its name means when it is present."""

    status: ImageIs
    id: str = ""
    reason: str = ""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    status: Status
    pid: int = 0
    badge: Badge
    armed: bool = False
    exit_code: int = 0
    address: str = ""


class TermIs(msgspec.Struct, frozen=True):
    """The term of the app on this node's page."""

    token: int
    epoch: int
    closing: bool = False


class Leader(msgspec.Struct, frozen=True):
    """Another node that leads the app, as consensus announced it. `peer`: the `HOST:PORT` of its tunnel, empty
    while that is not known; `url`: its API."""

    node: str
    peer: str
    epoch: int
    address: str = ""
    url: str = ""


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    now: float
    boot_id: str
    locked: bool = False
    term: TermIs | None = None
    container: Container | None = None
    guarded: bool = False  # the leash table names a container of this app, dead or alive
    digest: str = ""  # of the current version's container
    trial_digest: str = ""
    image: Image = Image(ImageIs.PRESENT)
    trial_image: Image = Image(ImageIs.PRESENT)
    attached: frozenset[str] = frozenset()
    health: Health | None = None
    failures: Failures = Failures()
    trial_since_at: float = 0.0  # when the candidate's container was first seen; 0 = not yet
    spoiled: str = ""  # why the container must be made anew though it runs
    waits_for: tuple[str, ...] = ()  # apps that it depends on and that do not run
    severed: str = ""  # why the router cannot reach the container though it runs
    limbo_since_at: float = 0.0  # since when it has been severed, or on its way to an end; 0 = it is not
    refusals: int = 0  # steps in a row that podman understood and could not do
    clustered: bool = False  # there are, or may be, other nodes
    leader: Leader | None = None  # always another node
    heirs: bool = False  # another node could lead it now
    purged: bool = False  # its volumes here are deleted
    barred: str = ""  # why the app may never run on this node
    writes: bool = True  # this node may change documents: it leads the kernel


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now, what to show, and why. `wake_at`: when to look again even if nothing happens (0 = no need)."""

    state: State
    reason: str
    route: Route
    steps: tuple[Do, ...] = ()
    wake_at: float = 0.0
    note: str = ""  # for PROMOTE and GIVE_UP
    trial: bool = False  # the steps are about the candidate
    failed: str = ""  # the container is given up for this, which counts as a failure of the app
    verdict: Do | None = None  # PROMOTE or GIVE_UP that only the kernel's leader can write

    @property
    def sentence(self) -> str:
        doing = f"{', '.join(self.steps)}" if self.steps else "nothing to do"
        return f"{self.state}{': ' + self.reason if self.reason else ''} ({doing})"
