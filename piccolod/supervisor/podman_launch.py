"""Prepares podman's configuration, then becomes its API service. Runs on its own, because disks and mounts can hang.

    python -I podman_launch.py        stdin: nothing; 3: a file with the configuration as JSON; 4: where a failure is told

Which process is the service stands in a pid file, written before it becomes podman: a supervisor that dies at any instant
leaves a successor something to adopt, and two launches never make two services.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from typing import NoReturn

if not __package__:  # run by its path in isolated mode, where no folder of ours is on the search path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from piccolod import config as configuration
from piccolod import podman_conf
from piccolod.config import Config
from piccolod.errors import PiccoloError
from piccolod.leadership import oci_hook
from piccolod.supervisor import rights
from piccolod.supervisor.known_process import KnownProcess, pid_file


def launch(config: Config) -> None:
    """Returns only when the service runs already. Raises PiccoloError or OSError."""
    rights.no_core_dumps()
    file = pid_file(config.paths)
    # Held until the very instant in which this process becomes podman.
    lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    running = KnownProcess.read(file)
    if running is not None and (pidfd := running.open()) >= 0:
        os.close(pidfd)
        return
    podman = podman_conf.prepare(config)
    oci_hook.write_hook(config.paths, sys.executable)
    KnownProcess.of(os.getpid()).write(file)
    config.paths.podman_socket.unlink(missing_ok=True)
    os.execve(podman.service_argv[0], list(podman.service_argv), podman.env)  # noqa: S606


def main() -> NoReturn:
    os.set_inheritable(3, False)
    os.set_inheritable(4, False)
    with open(3, "rb") as file:
        config = configuration.from_mapping(json.load(file))
    failure = {}
    try:
        launch(config)
    except PiccoloError as error:
        failure = {"code": error.code, "detail": error.detail}
    except Exception as error:
        failure = {"code": "failed", "detail": f"{type(error).__name__}: {error}"}
    if failure:
        os.write(4, json.dumps(failure).encode())
    os._exit(int(bool(failure)))


if __name__ == "__main__":
    main()
