"""What is left to a module of the powers of root."""

from __future__ import annotations

import json
import os
import pwd
import resource
import tempfile

import pytest

from piccolod.supervisor import rights
from piccolod.supervisor.rights import Rights
from tests.unit.supervisor.conftest import row

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_CHOWN, _KILL = 0, 5


def after(wanted: Rights) -> dict:
    """What a process is that has taken `wanted`."""
    reader, writer = os.pipe()
    fd, file_of_root = tempfile.mkstemp()
    os.close(fd)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            missing = rights.take(wanted)
            with open("/proc/self/status") as file:
                status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
            try:
                os.chown(file_of_root, 1, 1)
                chown = True
            except PermissionError:
                chown = False
            found = {
                "missing": missing, "status": {key: status[key].split()[0] for key in ("Uid", "Gid", "CapEff", "CapPrm", "CapBnd", "CapInh", "NoNewPrivs")},
                "groups": status["Groups"].split(), "chown": chown, "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
                "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            }  # fmt: skip
            os.write(writer, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    os.unlink(file_of_root)
    with open(reader) as file:
        return json.load(file)


def test_root_without_capabilities_has_none_and_can_gain_none():
    found = after(Rights())
    assert found["missing"] == []
    assert {found["status"][key] for key in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {"0" * 16}
    assert found["status"]["NoNewPrivs"] == "1"
    assert found["chown"] is False
    assert found["core"] == 1
    assert found["files"][0] == min(found["files"][1], 1 << 20)


def test_a_module_keeps_exactly_what_its_row_names():
    found = after(Rights(capabilities=("CAP_CHOWN", "CAP_KILL")))
    assert int(found["status"]["CapEff"], 16) == int(found["status"]["CapBnd"], 16) == 1 << _CHOWN | 1 << _KILL
    assert found["chown"] is True


def test_another_user_is_become_for_good_with_its_groups():
    nobody = pwd.getpwnam("nobody")
    found = after(Rights(user="nobody"))
    assert found["status"]["Uid"] == str(nobody.pw_uid)
    assert found["status"]["Gid"] == str(nobody.pw_gid)
    assert "0" not in found["groups"]
    assert int(found["status"]["CapPrm"], 16) == 0


def test_another_user_keeps_a_capability_that_its_row_names():
    found = after(Rights(user="nobody", capabilities=("CAP_KILL",)))
    assert int(found["status"]["CapEff"], 16) == 1 << _KILL


def test_a_user_that_the_host_lacks_is_named_and_costs_the_capabilities_all_the_same():
    found = after(Rights(user="piccolo-nowhere"))
    assert found["missing"] == ["there is no user piccolo-nowhere on this host: it runs as root without its capabilities"]
    assert int(found["status"]["CapEff"], 16) == 0


def test_a_capability_that_the_host_does_not_grant_is_named():
    if rights._permitted() >> 24 & 1:
        pytest.skip("this host grants CAP_SYS_RESOURCE")
    assert after(Rights(capabilities=("CAP_SYS_RESOURCE",)))["missing"] == ["this host does not grant CAP_SYS_RESOURCE"]


def test_a_cgroup_that_cannot_be_entered_is_named():
    assert "its limits are not enforced" in after(Rights(cgroup="/nowhere"))["missing"][0]


def test_modules_of_a_tree_run_with_these_rights_and_die_with_their_supervisor(make_node):
    node = make_node([row("m", user="piccolo-nowhere"), row("x", spawn="exec", capabilities=["CAP_KILL"])]).start()
    assert node.module("m")["warnings"] == [
        "there is no user piccolo-nowhere on this host: it runs as root without its capabilities"
    ]
    with open(f"/proc/{node.pid('m')}/status") as file:
        assert "CapEff:\t0000000000000000\n" in file.read()
    with open(f"/proc/{node.pid('x')}/status") as file:
        assert f"CapEff:\t{1 << _KILL:016x}\n" in file.read()


def test_the_supervisors_own_memory_and_its_modules_cannot_be_dumped(make_node):
    node = make_node([row("m")]).start()
    assert node.process is not None
    for pid in (node.process.pid, node.pid("m")):
        with open(f"/proc/{pid}/limits") as file:
            assert any(line.split()[:5] == ["Max", "core", "file", "size", "1"] for line in file)
