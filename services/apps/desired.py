"""What is wanted of an app: the document `apps/<name>` in the control store, and each change that a command makes to it.

Pure: every function takes the document and returns the next one. What is actual is never written here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from piccolod.errors import Busy, Conflict, Invalid
from services.apps.manifest import Manifest, Pull

SCHEMA: Final = 1


class Version(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What can run: a manifest, and the image that its name or build meant here. Empty `image_id`: not known yet."""

    manifest: Manifest
    image_id: str = ""


class Desired(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`restarts` counts wishes to restart: a container of another count is replaced.

    `boot_id` names the boot in which it was last started: that is what keeps a disabled app running until the machine stops.
    `candidate` is an update on trial; `current` is untouched until the trial is won.
    """

    current: Version
    ports: dict[str, int]
    schema: int = SCHEMA
    running: bool = True
    enabled: bool = True
    generation: int = 1
    restarts: int = 0
    boot_id: str = ""
    previous: Version | None = None
    candidate: Version | None = None
    note: str = ""  # what became of the last update
    removing: bool = False
    purge: bool = False
    idem: str = ""  # of the command that made this change: its retry changes nothing

    @property
    def name(self) -> str:
        return self.current.manifest.name

    def wanted(self, boot_id: str) -> bool:
        """Whether it is to run now."""
        return self.running and not self.removing and (self.enabled or self.boot_id == boot_id)


def to_body(desired: Desired) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(desired)
    return body


def from_body(body: dict[str, Any]) -> Desired:
    """Raises Invalid for a document of another schema: what is not understood is not acted on."""
    try:
        desired = msgspec.convert(body, Desired)
    except msgspec.ValidationError as error:
        raise Invalid(f"its document is not understood: {error}", hint="was it written by a newer piccolod?") from error
    if desired.schema != SCHEMA:
        raise Invalid(f"its document has schema {desired.schema}, this piccolod knows {SCHEMA}")
    return desired


def install(manifest: Manifest, image_id: str, ports: dict[str, int], boot_id: str, idem: str) -> Desired:
    return Desired(current=Version(manifest=manifest, image_id=image_id), ports=ports, boot_id=boot_id, idem=idem)


def apply(desired: Desired, manifest: Manifest, image_id: str, ports: dict[str, int], boot_id: str, idem: str) -> Desired:
    """The manifest as it is now wanted; the same one changes nothing. Ends an update that is on trial."""
    _not_removing(desired)
    if manifest == desired.current.manifest and desired.candidate is None and manifest.pull is not Pull.ALWAYS:
        return desired
    return _next(
        desired,
        current=Version(manifest=manifest, image_id=image_id),
        previous=desired.current,
        candidate=None,
        ports=ports,
        boot_id=boot_id,
        note="",
        idem=idem,
    )


def start(desired: Desired, boot_id: str, idem: str) -> Desired:
    _not_removing(desired)
    if desired.wanted(boot_id):
        return desired
    return _next(desired, running=True, boot_id=boot_id, idem=idem)


def stop(desired: Desired, idem: str) -> Desired:
    _not_removing(desired)
    return _next(desired, running=False, idem=idem) if desired.running else desired


def restart(desired: Desired, boot_id: str, idem: str) -> Desired:
    _not_removing(desired)
    return _next(desired, running=True, boot_id=boot_id, restarts=desired.restarts + 1, idem=idem)


def enable(desired: Desired, enabled: bool, idem: str) -> Desired:
    """Says whether it starts by itself after a boot; what runs goes on."""
    _not_removing(desired)
    return desired if desired.enabled == enabled else _next(desired, enabled=enabled, idem=idem)


def update(desired: Desired, image: str, image_id: str, idem: str) -> Desired:
    """Puts an image on trial. `image` empty: what the manifest's name means now."""
    _not_removing(desired)
    if desired.candidate is not None:
        raise Busy(f"an update of {desired.name} is already under way", hint="wait for it, or `revert`")
    manifest = desired.current.manifest
    if image:
        manifest = msgspec.structs.replace(manifest, image=image, build=None)
    if manifest == desired.current.manifest and image_id == desired.current.image_id != "":
        return desired
    candidate = Version(manifest=manifest, image_id=image_id)
    return _next(desired, candidate=candidate, note="", idem=idem)


def promote(desired: Desired, note: str = "") -> Desired:
    """The trial is won: the candidate is what runs."""
    assert desired.candidate is not None
    return _next(desired, current=desired.candidate, previous=desired.current, candidate=None, note=note)


def give_up(desired: Desired, note: str) -> Desired:
    """The trial is lost: everything as before, and a word about it."""
    return _next(desired, candidate=None, note=note)


def revert(desired: Desired, ports: dict[str, int], idem: str) -> Desired:
    """Back to the version before; doing it twice is where one started. During a trial it ends the trial."""
    _not_removing(desired)
    if desired.candidate is not None:
        return _next(desired, candidate=None, note="the update was reverted", idem=idem)
    if desired.previous is None:
        raise Conflict(f"{desired.name} has no earlier version", hint="a version is kept at each `apply` and `update`")
    return _next(desired, current=desired.previous, previous=desired.current, ports=ports, note="", idem=idem)


def pin(desired: Desired, image_id: str) -> Desired:
    """The image that was named is now known by its id. No new generation: nothing else is wanted than before."""
    if desired.candidate is not None and not desired.candidate.image_id:
        return msgspec.structs.replace(desired, candidate=msgspec.structs.replace(desired.candidate, image_id=image_id))
    return msgspec.structs.replace(desired, current=msgspec.structs.replace(desired.current, image_id=image_id))


def uninstall(desired: Desired, purge: bool, idem: str) -> Desired:
    """To be taken away. Asking again may add `purge`, never take it back."""
    if desired.removing and desired.purge >= purge:
        return desired
    return _next(desired, removing=True, running=False, candidate=None, purge=purge or desired.purge, idem=idem)


def _next(desired: Desired, **changes: Any) -> Desired:
    return msgspec.structs.replace(desired, generation=desired.generation + 1, **changes)


def _not_removing(desired: Desired) -> None:
    if desired.removing:
        raise Busy(f"{desired.name} is being uninstalled")


def differences(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """`path: old -> new` for each leaf that differs."""
    before, after = _leaves(msgspec.to_builtins(old)), _leaves(msgspec.to_builtins(new))
    # msgspec leaves a default out only when it is that very object, not when it was written out: so values decide.
    was, becomes = _leaves(_whole(old)), _leaves(_whole(new))
    return tuple(
        f"{path}: {_shown(path, before.get(path))} -> {_shown(path, after.get(path))}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path) and was.get(path) != becomes.get(path)
    )


def _whole(value: Any) -> Any:
    """With every default."""
    if isinstance(value, msgspec.Struct):
        return {name: _whole(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in items:
        found |= _leaves(item, f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else str(key))
    return found


def _shown(path: str, value: Any) -> str:
    """Environment and app_config often hold what is nobody's business."""
    if value is None:
        return "(default)"
    return "(set)" if path.startswith(("environment", "app_config")) else str(value)
