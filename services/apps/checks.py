"""Rules of one text each. A check raises ValueError with the rest of a sentence that begins with the field."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Final

from piccolod.units import parse_duration, parse_size
from services.apps import capabilities

# docs.docker.com/reference: [registry[:port]/]name[:tag][@digest]
_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE: Final = re.compile(
    rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{{1,5}})?/)?{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_IMAGE_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FORBIDDEN_ROOTS: Final = ("/proc", "/sys", "/dev")
_MAX_DURATION_S: Final = 7 * 86400.0


def image(text: str) -> None:
    if not _IMAGE.fullmatch(text) and not _IMAGE_ID.fullmatch(text):
        raise ValueError(f"{text!r} is not an image: write a name as localhost/notes:1, or name@sha256:...")


def size(text: str) -> None:
    parse_size(text)


def duration(text: str) -> None:
    if parse_duration(text) > _MAX_DURATION_S:
        raise ValueError(f"{text!r} is longer than 7d")


def container_path(text: str) -> None:
    no_nul(text)
    if not text.startswith("/"):
        raise ValueError(f"{text!r} must be absolute: begin with /")
    if ".." in text.split("/"):
        raise ValueError(f"{text!r} must not contain `..`")
    if text == "/" or text.strip("/") == "":
        raise ValueError("must not be the root of the container")
    if posixpath.normpath(text) != text or text.startswith("//"):
        raise ValueError(f"{text!r} must be normalised: write {'/' + posixpath.normpath(text).lstrip('/')}")
    for root in _FORBIDDEN_ROOTS:
        if text == root or text.startswith(f"{root}/"):
            raise ValueError(f"{text!r} must not be in {root}")
    if any(character in text for character in ",:\\") or not text.isprintable():
        raise ValueError(f"{text!r} must not contain commas, colons, backslashes or control characters")


def url_path(text: str) -> None:
    if not re.fullmatch(r"/[!-~]*", text):
        raise ValueError(f"{text!r} must begin with / and have no spaces, control or non-ASCII characters")


def no_nul(text: str) -> None:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")


def one_line(text: str) -> None:
    if not text.isprintable():
        raise ValueError("must be one line without control characters")


def capability(text: str) -> None:
    if text.removeprefix("CAP_") not in capabilities.ALL:
        raise ValueError(f"{text!r} is not a capability of Linux")


CHECKS: Final[dict[str, Callable[[str], None]]] = {
    "image": image,
    "size": size,
    "duration": duration,
    "container_path": container_path,
    "url_path": url_path,
    "no_nul": no_nul,
    "one_line": one_line,
    "capability": capability,
}
