"""The last look at the gate before a led container comes into being: an OCI `createRuntime` hook.

    python -IS oci_hook.py PAGE  < state.json

A start that was queued while the world moved on is refused here: exit code 1, unless the page still holds the very token, open,
that the container was made for. The OCI runtime hands over the container's state; its annotations are in the bundle.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

if not __package__:  # run by its path in isolated mode, where no folder of ours is on the search path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from piccolod.errors import TermOver
from piccolod.leadership.gate import Gate, Shut
from piccolod.leadership.page import PageReader

if TYPE_CHECKING:  # each import is a part of the start of every led app
    from pathlib import Path

    from piccolod.paths import Paths

RESOURCE_ANNOTATION: Final = "io.piccolo.resource"
TOKEN_ANNOTATION: Final = "io.piccolo.token"  # noqa: S105
EPOCH_ANNOTATION: Final = "io.piccolo.epoch"
_FILE_NAME: Final = "piccolo-gate.json"
# Reading a page takes 0.1 ms and starting Python 30 ms; the rest is for a machine in trouble.
_TIMEOUT_S: Final = 5


def term_annotations(resource: str, token: int, epoch: int) -> dict[str, str]:
    """What a led container must carry. The epoch, for tokens begin anew with an etcd that was begun anew."""
    return {RESOURCE_ANNOTATION: resource, TOKEN_ANNOTATION: str(token), EPOCH_ANNOTATION: str(epoch)}


def write_hook(paths: Paths, python: str) -> Path:
    """Writes the hook's definition into a hooks directory of podman (oci-hooks(5)) and returns the file.

    It matches every container that carries the annotation.
    """
    definition = {
        "version": "1.0.0",
        "hook": {
            "path": python,
            "args": [python, "-IS", os.path.abspath(__file__), str(paths.page)],
            "timeout": _TIMEOUT_S,
        },
        "when": {"annotations": {f"^{RESOURCE_ANNOTATION.replace('.', '[.]')}$": ".*"}},
        "stages": ["createRuntime"],
    }
    file, draft = paths.oci_hooks / _FILE_NAME, paths.oci_hooks / f".{_FILE_NAME}.{os.getpid()}"
    draft.write_text(json.dumps(definition, indent=2))
    os.replace(draft, file)
    return file


def refusal(page: str, state: Any) -> str | None:
    """Why the container may not start; `None` when it may."""
    try:
        with open(os.path.join(state["bundle"], "config.json"), "rb") as file:
            config = json.load(file)
        resource = config["annotations"][RESOURCE_ANNOTATION]
        made_for = int(config["annotations"][TOKEN_ANNOTATION]), int(config["annotations"][EPOCH_ANNOTATION])
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"the container names no term: {type(error).__name__} {error}"
    try:
        term = Gate(PageReader(page)).check(resource)
    except TermOver as over:
        return str(over)
    return None if (term.token, term.epoch) == made_for else f"{resource}: {Shut.OTHER_TERM}"


def main(page: str) -> int:
    try:
        reason = refusal(page, json.load(sys.stdin))
    except ValueError as error:
        reason = f"the runtime's state is unreadable: {error}"
    if reason is not None:
        print(f"piccolo: start refused: {reason}", file=sys.stderr)
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
