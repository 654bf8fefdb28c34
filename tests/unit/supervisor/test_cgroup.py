"""Leaves for modules, in a cgroup that looks like a delegated service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from piccolod.supervisor import rights
from piccolod.supervisor.cgroup import Cgroups
from tests.unit.supervisor.conftest import wait_for

MOUNT = next(
    (path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if (path / "cgroup.procs").exists()), None
)


@pytest.fixture
def service():
    if os.geteuid() != 0 or MOUNT is None:
        pytest.skip("needs root and cgroup v2")
    folder = MOUNT / f"piccolo-test-{os.getpid()}.service"
    try:
        (folder / "supervisor").mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield folder
    for leaf in [*folder.iterdir()]:
        if leaf.is_dir():
            wait_for(lambda leaf=leaf: not (leaf / "cgroup.procs").read_text(), "the leaf is empty")
            leaf.rmdir()
    folder.rmdir()


def inside(group: Path, work) -> str:
    """What `work` returns in a process that lives in `group`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            (group / "cgroup.procs").write_text("0")
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader) as file:
        return file.read()


def test_each_module_gets_a_leaf_and_enters_it(service):
    def work() -> str:
        leaf = Cgroups.of_this_process(MOUNT).leaf("router.0", 1 << 29)
        missing = rights.take(rights.Rights(cgroup=leaf))
        return f"{leaf} {missing} {Path('/proc/self/cgroup').read_text()}"

    found = inside(service / "supervisor", work)
    assert found.startswith(f"{service}/router.0 []")
    assert f"0::/{service.name}/router.0" in found


def test_a_supervisor_in_the_services_own_group_takes_nothing(service):
    assert inside(service, lambda: repr(Cgroups.of_this_process(MOUNT).leaf("m", 1 << 29))) == "''"


def test_a_supervisor_that_is_not_alone_takes_nothing(service):
    def work() -> str:
        child = os.fork()
        if child == 0:
            os.read(os.pipe()[0], 1)
        try:
            return repr(Cgroups.of_this_process(MOUNT).leaf("m", 1 << 29))
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)

    assert inside(service / "supervisor", work) == "''"
