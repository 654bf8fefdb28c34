"""Builds an image into a node's own containers. Usage: build.py CONFIG CONTEXT TAG"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from piccolod import config, podman_conf
from piccolod.errors import PiccoloError


def main(file: str, context: str, tag: str) -> int:
    try:
        podman = podman_conf.prepare(config.load(Path(file)))
    except PiccoloError as error:
        print(f"demo-image: {error.detail}{': ' + error.hint if error.hint else ''}", file=sys.stderr)
        return error.exit_code
    build = subprocess.run(
        [*podman.argv, "build", "--quiet", "--network", "none", "--tag", tag, context],
        env=podman.env,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if build.returncode == 0:
        print(f"{tag} is ready ({build.stdout.strip()[:12]})")
    return build.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
