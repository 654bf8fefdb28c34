"""Words of podman, without what only the manifest says: reasons are logged and kept in the journal, in clear. Pure.

podman and the runtime quote what they could not do: a command, a path, a line of a Containerfile. The place in the manifest
tells its owner the same, and nobody else anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from services.apps.manifest import Manifest, Probe

# A shorter value tells nothing, and would be found in every sentence.
_SHORTEST: Final = 3


def discreet(text: str, *manifests: Manifest) -> str:
    """`text` with "(command[0])" in the place of the value, and so on."""
    values = {form: place for manifest in manifests for place, value in _places(manifest) for form in _forms(value)}
    for value in sorted(values, key=len, reverse=True):
        # Whole words; what begins with another sign, as a path does, may follow one.
        before, after = (r"(?<!\w)" if value[0].isalnum() else ""), (r"(?!\w)" if value[-1].isalnum() else "")
        text = re.sub(f"{before}{re.escape(value)}{after}", f"({values[value]})".replace("\\", r"\\"), text)
    for value, place in values.items():  # long words are cut
        cut = next((size for size in range(min(len(value), len(text)), _SHORTEST, -1) if text.endswith(value[:size])), 0)
        if cut:
            text = f"{text[:-cut]}({place})"
    return text


def _forms(value: str) -> Iterator[str]:
    """As podman may write it: as it is, in quotes, in one line."""
    for form in (value, json.dumps(value, ensure_ascii=False)[1:-1], " ".join(value.split())):
        if len(form) >= _SHORTEST:
            yield form


def _places(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Where the manifest says what, of all that podman is told."""
    for index, argument in enumerate(manifest.command):
        yield f"command[{index}]", argument
    for name, value in manifest.environment.items():
        yield f"environment.{name}", value
    for index, secret in enumerate(manifest.secrets):
        yield f"secrets[{index}].file", secret.file or ""
    for name, kept in manifest.storage.persistent.items():
        yield f"storage.persistent.{name}.container", kept.container
    for name, temporary in manifest.storage.temporary.items():
        yield f"storage.temporary.{name}.container", temporary.container
    if manifest.healthcheck is not None:
        yield from _probe("healthcheck", manifest.healthcheck)
        if manifest.healthcheck.ready is not None:
            yield from _probe("healthcheck.ready", manifest.healthcheck.ready)
    if manifest.build is not None:
        for number, line in enumerate(manifest.build.containerfile.splitlines(), 1):
            yield f"build.containerfile, line {number}", line.strip()
            _, _, arguments = line.strip().partition(" ")
            yield f"build.containerfile, line {number}", arguments.strip()


def _probe(place: str, probe: Probe) -> Iterator[tuple[str, str]]:
    if probe.http is not None:
        yield f"{place}.http.path", probe.http.path
    if probe.exec is not None:
        for index, argument in enumerate(probe.exec.command):
            yield f"{place}.exec.command[{index}]", argument
