"""Commands of apps, and the documents that they keep in the control store (`apps/<name>`, `ports/<proto>-<n>`)."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from piccolod.protocol.base import Nothing, Request


class LeaderDocument(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    address: str
    epoch: int


class AppOnNode(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    reason: str
    container_id: str


class ListenerDocument(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    guest_port: int
    public_port: int
    bound: bool = True  # false: a worker of the router could not bind the port, which is then of no use
    flow: str
    protocol: str


class AppDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An app as `apps list` and `GET /apps` show it. `state` is that on the node that leads it, `nodes` has it of each node."""

    name: str
    title: str
    policy: str
    state: str
    reason: str
    desired: str  # running | stopped
    enabled: bool
    generation: int
    image: str
    image_id: str
    leader: LeaderDocument | None
    nodes: dict[str, AppOnNode]
    listeners: tuple[ListenerDocument, ...]
    volumes: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()
    restarts: int = 0


class AppDocuments(msgspec.Struct, frozen=True, kw_only=True):
    apps: tuple[AppDocument, ...]


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a management call: committed at `rev`. The app converges afterwards; watch its state."""

    app: AppDocument
    rev: int
    warnings: tuple[str, ...] = ()


class ListApps(Request[AppDocuments], frozen=True, kw_only=True):
    command: ClassVar[str] = "apps.list"
    reply: ClassVar[type] = AppDocuments


class ShowApp(Request[AppDocument], frozen=True, kw_only=True):
    command: ClassVar[str] = "apps.show"
    reply: ClassVar[type] = AppDocument
    name: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest as it was written. `format` is yaml or json."""

    text: str
    format: str = "yaml"


class Validated(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    warnings: tuple[str, ...]


class ValidateManifest(Request[Validated], frozen=True, kw_only=True):
    """Invalid with every mistake."""

    command: ClassVar[str] = "apps.validate"
    reply: ClassVar[type] = Validated
    manifest: Manifest
    consent: bool = False  # the admin agrees to `privileged`


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What `apply` would do. `action` is install, change or none; `changes` are `path: old -> new`."""

    name: str
    action: str
    changes: tuple[str, ...]
    restarts: bool
    warnings: tuple[str, ...]


class PlanApp(Request[Plan], frozen=True, kw_only=True):
    command: ClassVar[str] = "apps.plan"
    reply: ClassVar[type] = Plan
    manifest: Manifest
    consent: bool = False


class InstallApp(Request[Changed], frozen=True, kw_only=True):
    """A new app. Exists, Invalid, Conflict (a port is taken)."""

    command: ClassVar[str] = "apps.install"
    reply: ClassVar[type] = Changed
    manifest: Manifest
    author: str
    consent: bool = False


class ApplyApp(Request[Changed], frozen=True, kw_only=True):
    """New or changed. `name` set: must be the manifest's name (PUT /apps/{name})."""

    command: ClassVar[str] = "apps.apply"
    reply: ClassVar[type] = Changed
    manifest: Manifest
    author: str
    name: str = ""
    consent: bool = False


class ChangeApp(Request[Changed], frozen=True, kw_only=True):
    """`action`: start, stop, restart, enable, disable, revert."""

    command: ClassVar[str] = "apps.change"
    reply: ClassVar[type] = Changed
    name: str
    action: str
    author: str
    without_snapshot: bool = False  # revert of an app with persistent volumes
    consent: bool = False  # revert to a manifest that is as good as the whole machine


class UpdateApp(Request[Changed], frozen=True, kw_only=True):
    """Another image (or the same tag looked up again when `image` is empty). Health-gated, rolls back by itself."""

    command: ClassVar[str] = "apps.update"
    reply: ClassVar[type] = Changed
    name: str
    author: str
    image: str = ""
    without_snapshot: bool = False
    consent: bool = False  # another image for an app that is as good as the whole machine


class UninstallApp(Request[Nothing], frozen=True, kw_only=True):
    """`purge` deletes the app's volumes as well. NotFound; succeeds when the container is already gone."""

    command: ClassVar[str] = "apps.uninstall"
    reply: ClassVar[type] = Nothing
    name: str
    author: str
    purge: bool = False


class Quiesced(msgspec.Struct, frozen=True, kw_only=True):
    """`still_running`: apps that did not stop in time; what they hold is not given back."""

    still_running: tuple[str, ...]


class Quiesce(Request[Quiesced], frozen=True, kw_only=True):
    """Before a lock: stops every led app, detaches its volumes and clears its secrets.

    They stay stopped until the store is unlocked again, or for 30 s when no lock follows. Their documents are untouched.
    `wish` names the lock that is to follow.
    """

    wish: str = ""

    command: ClassVar[str] = "apps.quiesce"
    reply: ClassVar[type] = Quiesced


class Resume(Request[Nothing], frozen=True, kw_only=True):
    """The lock that `Quiesce` came before has failed: led apps come back at once.

    No-op when the lock came all the same, and after the `Quiesce` of another `wish`.
    """

    wish: str = ""

    command: ClassVar[str] = "apps.resume"
    reply: ClassVar[type] = Nothing


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    at_ms: int
    stream: str  # stdout | stderr
    line: str


class LogLines(msgspec.Struct, frozen=True, kw_only=True):
    """`cursor` is given back as `cursor` to follow."""

    lines: tuple[LogLine, ...]
    cursor: str


class GetAppLogs(Request[LogLines], frozen=True, kw_only=True):
    """At most `tail` lines (1000 at most) newer than `cursor`, or than `since_ms`."""

    command: ClassVar[str] = "apps.logs"
    reply: ClassVar[type] = LogLines
    name: str
    tail: int = 200
    since_ms: int = 0
    cursor: str = ""


class ImageDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is the config digest: the same image has the same id on every node."""

    id: str
    names: tuple[str, ...]
    size_bytes: int
    created_ms: int
    used_by: tuple[str, ...]


class ImageDocuments(msgspec.Struct, frozen=True, kw_only=True):
    images: tuple[ImageDocument, ...]


class ListImages(Request[ImageDocuments], frozen=True, kw_only=True):
    command: ClassVar[str] = "apps.images"
    reply: ClassVar[type] = ImageDocuments


class AddImage(Request[ImageDocuments], frozen=True, kw_only=True):
    """`kind`: load (an OCI or docker archive), import (a root file system, `name` needed), build (a tar with a
    Containerfile, `name` needed). `file` is below state_dir/uploads, written by the api, removed by it afterwards."""

    command: ClassVar[str] = "apps.add_image"
    reply: ClassVar[type] = ImageDocuments
    kind: str
    file: str
    name: str = ""


class PruneImages(Request[ImageDocuments], frozen=True, kw_only=True):
    """Removes images without a name that no version of an app needs, the one to revert to included. `unused`: named ones as
    well, which an app that is not installed yet could not run without a registry. The answer: what is gone."""

    command: ClassVar[str] = "apps.prune_images"
    reply: ClassVar[type] = ImageDocuments
    unused: bool = False


class ManifestSchema(msgspec.Struct, frozen=True, kw_only=True):
    """`document` is a JSON Schema of the manifest."""

    document: dict[str, Any]


class GetManifestSchema(Request[ManifestSchema], frozen=True, kw_only=True):
    command: ClassVar[str] = "apps.schema"
    reply: ClassVar[type] = ManifestSchema


class HardStop(msgspec.Struct, frozen=True, kw_only=True):
    """F: from SIGKILL until the kernel has proven that nothing of a container lives; the slowest of a few."""

    stop_s: float


class MeasureHardStop(Request[HardStop], frozen=True, kw_only=True):
    """Kills containers that were made for that. Unavailable: podman, or what it would run, is not there. Failed."""

    command: ClassVar[str] = "apps.measure_hard_stop"
    reply: ClassVar[type] = HardStop
