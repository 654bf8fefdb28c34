"""Builds an image into a node's own containers. Usage: build.py CONFIG CONTEXT TAG"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from piccolod import config, podman_conf
from piccolod.errors import PiccoloError


def main(file: str, context: str, tag: str) -> int:
    try:
        settings = config.load(Path(file))
        podman = podman_conf.prepare(settings)
    except PiccoloError as error:
        print(f"demo-image: {error.detail}{': ' + error.hint if error.hint else ''}", file=sys.stderr)
        return error.exit_code
    try:
        build = subprocess.run(
            [*podman.argv, "build", "--quiet", "--network", "none", "--tag", tag, context],
            env=podman.env,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        _leave(settings)
    if build.returncode == 0:
        print(f"{tag} is ready ({build.stdout.strip()[:12]})")
    return build.returncode


def _leave(settings: config.Config) -> None:
    """Leaves no mount behind where no piccolod runs, which would need it."""
    lock = os.open(settings.paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        podman_conf.release(settings)
    except BlockingIOError:
        return
    finally:
        os.close(lock)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
