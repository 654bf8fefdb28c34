"""Words of podman, without what only the manifest says: reasons are logged and kept in the journal, in clear. Pure.

podman and the runtime quote what they could not do: a command, a path, a line of a Containerfile. The place in the manifest
tells its owner the same, and nobody else anything.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from services.apps.manifest import Manifest, Probe

# A shorter value tells nothing, and would be found in every sentence; so would a short word, such as `the` or `file`.
_SHORTEST: Final = 3
_SHORTEST_WORD: Final = 5
# As Go's %q and strconv.Quote write them.
_ESCAPES: Final = {
    "\\": r"\\", '"': r"\"", "\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v",
}  # fmt: skip


def discreet(text: str, *manifests: Manifest) -> str:
    """`text` with "(command[0])" in the place of the value, and so on."""
    return without(text, [pair for manifest in manifests for pair in _places(manifest)])


def without(text: str, places: Iterable[tuple[str, str]]) -> str:
    """`text` with "(place)" for each value of (place, value)."""
    # Looked for before anything is made of it: a manifest has thousands of lines, and this runs on the event loop.
    values = {form: place for place, value in places for form in _forms(value) if form[: _SHORTEST + 1] in text}
    found = sorted((value for value in values if value in text), key=len, reverse=True)
    if found:  # in one go, so that what stands for a value is not searched for others
        text = re.sub("|".join(map(_pattern, found)), lambda match: f"({values[match[0]]})", text)
    for value, place in values.items():  # long words are cut
        cut = next((size for size in range(min(len(value), len(text)), _SHORTEST, -1) if text.endswith(value[:size])), 0)
        if cut:
            return f"{text[:-cut]}({place})"
    return text


def frames(error: BaseException) -> list[str]:
    """Where it came from, innermost last; not its words, which can hold what a manifest says."""
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


def _pattern(value: str) -> str:
    """Whole words; what begins with another sign, as a path does, may follow one."""
    before, after = (r"(?<!\w)" if value[0].isalnum() else ""), (r"(?!\w)" if value[-1].isalnum() else "")
    return f"{before}{re.escape(value)}{after}"


def _forms(value: str) -> Iterator[str]:
    """As podman may write it: as it is, in quotes, in one line."""
    for form in (value, json.dumps(value, ensure_ascii=False)[1:-1], _go_quoted(value), " ".join(value.split())):
        if len(form) >= (_SHORTEST_WORD if form.isalpha() else _SHORTEST):
            yield form


def _go_quoted(value: str) -> str:
    if value.isprintable() and not {'"', "\\"} & set(value):
        return value
    return "".join(_go_escaped(sign) for sign in value)


def _go_escaped(sign: str) -> str:
    code = ord(sign)
    if sign in _ESCAPES:
        return _ESCAPES[sign]
    if sign.isprintable():
        return sign
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


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
