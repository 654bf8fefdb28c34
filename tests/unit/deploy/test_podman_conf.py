"""How podman is configured, as text and against the real podman."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import podman_conf
from piccolod.config import Config, Node
from piccolod.config import Podman as PodmanKeys
from piccolod.errors import Unavailable
from piccolod.podman_conf import Cgroups, Host

HOST = Host(
    cgroups=Cgroups.UNIFIED, may_raise_limits=True, runc="/usr/bin/runc", crun="/usr/bin/crun", podman="/usr/bin/podman"
)


def node(folder: Path, **keys: str) -> Config:
    return Config(node=Node(name="n", state_dir=str(folder / "state"), run_dir=str(folder / "run")), podman=PodmanKeys(**keys))


def conf(config: Config, host: Host = HOST) -> dict[str, dict[str, object]]:
    return tomllib.loads(podman_conf.containers_conf(config, host))


def test_nothing_is_shared_with_the_hosts_podman(tmp_path: Path) -> None:
    engine = conf(node(tmp_path))["engine"]
    assert engine["lock_type"] == "file"
    for key in ("tmp_dir", "static_dir", "volume_path", "image_copy_tmp_dir"):
        assert str(engine[key]).startswith(str(tmp_path)) or str(engine[key]).startswith("/run/piccolo-")


def test_default_limits_stay_where_they_can_be_granted(tmp_path: Path) -> None:
    assert "default_ulimits" not in conf(node(tmp_path))["containers"]
    poor = dataclasses.replace(HOST, may_raise_limits=False)
    assert conf(node(tmp_path), poor)["containers"]["default_ulimits"] == []


def test_crun_is_used_only_where_it_works() -> None:
    assert podman_conf.choose_runtime("", HOST) == HOST.runc
    alone = dataclasses.replace(HOST, runc="")
    assert podman_conf.choose_runtime("", alone) == HOST.crun
    with pytest.raises(Unavailable, match="hybrid"):
        podman_conf.choose_runtime("", dataclasses.replace(alone, cgroups=Cgroups.HYBRID))
    with pytest.raises(Unavailable, match="no OCI runtime"):
        podman_conf.choose_runtime("", dataclasses.replace(alone, crun=""))
    assert podman_conf.choose_runtime("kata", HOST) == "kata"


def test_a_quote_in_a_folder_does_not_end_the_string(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" \\c'
    assert conf(node(folder, runroot="/r"))["engine"]["volume_path"] == str(folder / "state/containers/volumes")


def test_a_run_folder_that_podman_finds_too_long_gets_a_short_name(tmp_path: Path) -> None:
    long = node(tmp_path / ("x" * 40))
    argv = podman_conf._argv(long, "podman")
    assert len(argv[argv.index("--runroot") + 1]) <= 50


@pytest.fixture
def running(tmp_path: Path) -> Iterator[podman_conf.Podman]:
    """A node's podman with the demo image; leaves no container, network, mount or process."""
    if os.geteuid() != 0 or shutil.which("podman") is None or shutil.which("busybox") is None:
        pytest.skip("needs root, podman and busybox")
    config = node(tmp_path)
    podman = podman_conf.prepare(config)
    context = tmp_path / "context"
    shutil.copytree(Path(__file__).parents[3] / "deploy/demo", context)
    shutil.copy(shutil.which("busybox") or "", context / "rootfs/bin/busybox")
    try:
        call(podman, "build", "--quiet", "--tag", "localhost/piccolo-demo:1", str(context))
        yield podman
    finally:
        call(podman, "rm", "--force", "--all", "--time", "0")
        call(podman, "network", "prune", "--force")
        podman_conf.release(config)
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text(), "a mount is left"
        runroot = Path(podman.argv[podman.argv.index("--runroot") + 1])
        if runroot.is_symlink():
            runroot.unlink()


def call(podman: podman_conf.Podman, *argv: str) -> str:
    done = subprocess.run([*podman.argv, *argv], env=podman.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"podman {' '.join(argv)}: {done.stderr}"
    return done.stdout.strip()


def start_service(podman: podman_conf.Podman) -> subprocess.Popen[bytes]:
    socket = Path(podman.service_argv[-1].removeprefix("unix://"))
    socket.unlink(missing_ok=True)
    service = subprocess.Popen(podman.service_argv, env=podman.env, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 10
    while not socket.exists():
        assert service.poll() is None and time.monotonic() < until, "the API service made no socket"
        time.sleep(0.01)
    return service


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=1) as reply:
            return bool(reply.read() == b"ok\n")
    except OSError:
        return False


def wait_for_answer(address: str) -> None:
    until = time.monotonic() + 10
    while not answers(address):
        assert time.monotonic() < until, f"http://{address}/health does not answer"
        time.sleep(0.01)


@pytest.mark.root
@pytest.mark.podman
@pytest.mark.parametrize("network", [[], ["--internal"]], ids=["bridge", "internal"])
def test_a_container_answers_the_host_and_outlives_the_api_service(running: podman_conf.Podman, network: list[str]) -> None:
    name = f"piccolo-test-{os.getpid()}"
    call(running, "network", "create", *network, name)
    service = start_service(running)
    try:
        remote = ["podman", "--remote", "--url", running.service_argv[-1]]
        started = subprocess.run(
            [*remote, "run", "--detach", "--name", name, "--network", name, "--read-only", "--cap-drop", "all",
             "--memory", "64m", "localhost/piccolo-demo:1"],
            env=running.env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        address = call(running, "inspect", "--format", f'{{{{(index .NetworkSettings.Networks "{name}").IPAddress}}}}', name)
        wait_for_answer(address)
    finally:
        os.kill(service.pid, signal.SIGKILL)
        service.wait()
    assert answers(address)
    second = start_service(running)
    try:
        listed = subprocess.run(
            [*remote, "ps", "--format", "{{.Names}}"], capture_output=True, text=True, timeout=30, check=True
        )
        assert listed.stdout.split() == [name]
        began = time.monotonic()
        call(running, "stop", "--time", "8", name)
        assert time.monotonic() - began < 4, "the demo app must end on SIGTERM"
        assert call(running, "inspect", "--format", "{{.State.ExitCode}}", name) == "0"
    finally:
        second.terminate()
        second.wait(10)
