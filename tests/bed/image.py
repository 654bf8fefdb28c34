"""The demo app's image as one archive, written without podman: every machine loads the same file."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

from piccolod.protocol.images import ARCHITECTURE
from tests.node import DEMO_IMAGE, ROOT

_ROOTFS = ROOT / "deploy/demo/rootfs"
_LINKS = ("sh", "cat", "sleep", "wget")  # those of deploy/demo/load.sh


def write_demo(archive: Path) -> None:
    """In the form of `podman save` (docker-archive)."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed: make deps"
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(_ROOTFS, arcname=".", filter=_owned_by_root)
        tar.add(busybox, arcname="bin/busybox", filter=_owned_by_root)
        for name in _LINKS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    config = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"Cmd": ["/bin/serve"], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGTERM", "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [DEMO_IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for name, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    return entry
