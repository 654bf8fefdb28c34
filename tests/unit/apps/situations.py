"""Documents and situations of one app, for the tests of its plan."""

from __future__ import annotations

import msgspec

from services.apps import desired as change
from services.apps.badge import Badge
from services.apps.desired import Desired
from services.apps.health import Health, Phase
from services.apps.manifest import Manifest
from services.apps.podman_status import Status
from services.apps.situation import Container, Do, Image, ImageIs, Situation, TermIs
from services.apps.validate import validate

BOOT = "boot"
TEXT = "name: a\nimage: b\nlisteners: [{name: web, guest_port: 80}]\n"
UP = (Do.CREATE, Do.INIT, Do.ARM, Do.START)


def manifest(more: str = "") -> Manifest:
    return validate(TEXT + more).manifest


def wanted(more: str = "", **changes: object) -> Desired:
    desired = change.install(manifest(more), "sha256:1", {"web": 35000}, BOOT, "")
    return msgspec.structs.replace(desired, **changes)


def container(status: Status = Status.RUNNING, token: int = 7, spec: str = "now", armed: bool = True) -> Container:
    badge = Badge(cluster="c", node="n", app="a", epoch=1, generation=1, token=token, spec=spec)
    return Container(id="c1", status=status, pid=10 if status.has_processes else 0, badge=badge, armed=armed)


def at(**seen: object) -> Situation:
    base = Situation(now=100.0, boot_id=BOOT, digest="now", trial_digest="new", image=Image(ImageIs.PRESENT, "sha256:1"))
    return msgspec.structs.replace(base, **seen)


TERM = TermIs(7, 1)
READY = Health(90.0, Phase.READY, ready_at=91.0)
