from __future__ import annotations

from pathlib import Path

from services.volumes import mounts
from services.volumes.mounts import Mount

SAMPLE = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 22 0:41 / /run/a\040b/m rw,nosuid - fuse.gocryptfs piccolo:app.data rw,user_id=0
91 22 0:42 / /run/a\040b/m rw - tmpfs tmpfs rw
92 22 0:43 / /run/back\134slash rw - tmpfs none rw
broken line
"""


def test_the_kernels_list_is_read_with_its_escapes() -> None:
    found = mounts.parse(SAMPLE)
    assert found[1] == Mount("0:41", "/run/a b/m", "fuse.gocryptfs", "piccolo:app.data")
    assert found[3].point == "/run/back\\slash"
    assert len(found) == 4


def test_the_last_mount_on_a_point_is_the_one_that_is_seen() -> None:
    found = mounts.parse(SAMPLE)
    top = mounts.at(Path("/run/a b/m"), found)
    assert top is not None and top.kind == "tmpfs"
    assert mounts.at(Path("/run/a b"), found) is None
