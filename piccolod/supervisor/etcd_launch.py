"""Makes etcd's folder, gives up every right, then becomes etcd. Runs on its own, because disks can hang.

python -I etcd_launch.py 3 SUPERVISOR_PID        3: a file with the JSON {"argv", "env", "data_dir", "cwd"}
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

if not __package__:  # run by its path in isolated mode, where no folder of ours is on the search path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from piccolod.supervisor import rights


def main(fd: int, supervisor: int) -> NoReturn:
    os.set_inheritable(fd, False)
    with open(fd, "rb") as file:
        wanted = json.load(file)
    os.makedirs(wanted["data_dir"], mode=0o700, exist_ok=True)
    os.chdir(wanted["cwd"])
    rights.take(rights.Rights())
    if not rights.die_with(supervisor):
        os._exit(0)
    os.execve(wanted["argv"][0], wanted["argv"], wanted["env"])  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
