"""As a shell sees it: a process of its own, its start-up time, completion, pipes and Ctrl-C."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.api_double import ApiDouble, Reply

CTL = [sys.executable, "-m", "piccolod.cli"]


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PICCOLO_SOCKET": str(folder / "api.sock"), **more}


def complete(folder: Path, words: str, **more: str) -> list[str]:
    variables = {
        "COMP_WORDS": f"piccoloctl {words}",
        "COMP_CWORD": str(len(words.split(" "))),
        "_PICCOLOCTL_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        CTL, env=environment(folder, **variables, **more), capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_completion_knows_commands_and_asks_for_names(folder: Path, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [app, {**app, "name": "notes"}])
    double.on("GET", "/modules", [{"name": "router.0"}, {"name": "api"}])
    assert "stop" in complete(folder, "apps st")
    assert complete(folder, "apps stop ") == ["hello", "notes"]
    assert complete(folder, "apps stop n") == ["notes"]
    assert complete(folder, "modules restart ro") == ["router.0"]


def test_completion_gives_up_silently(folder: Path, double: ApiDouble) -> None:
    def silent(_: object) -> Reply:
        double.release.wait(20)
        return Reply(200, [])

    double.on("GET", "/apps", silent)
    began = time.monotonic()
    assert complete(folder, "apps stop ") == []
    assert time.monotonic() - began < 3
    assert complete(folder, "apps stop ", PICCOLO_SOCKET="/nonexistent") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_a_script_for_each_shell(shell: str) -> None:
    done = subprocess.run([*CTL, "completion", shell], capture_output=True, text=True, timeout=20, check=True)
    assert "_PICCOLOCTL_COMPLETE" in done.stdout


def test_a_start_imports_only_what_the_command_needs(folder: Path, double: ApiDouble) -> None:
    """Each of these costs more than all the rest of a start."""
    double.on("GET", "/apps", [])
    code = (
        "import sys; from piccolod.cli.main import run; code = run(['ps']);"
        "heavy = {'rich', 'httpx', 'requests', 'ruamel', 'msgspec', 'zmq', 'piccolod.config', 'piccolod.cli.checkup', 'tarfile'};"
        "found = sorted(heavy & set(sys.modules)); assert not found, found; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(folder), capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_error(folder: Path, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [{**app, "name": f"app{n}"} for n in range(5000)])
    command = f"{sys.executable} -m piccolod.cli ps; echo code=$? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | head -1"],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stderr == "code=0\n"


def test_ctrl_c_is_130_and_leaves_no_traceback(folder: Path, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [app])
    with subprocess.Popen(
        [*CTL, "ps", "-w"], env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("APP")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors


def on_terminal(folder: Path, *args: str, typed: str = "", **more: str) -> tuple[int, str]:
    """Runs on a terminal of its own; types `typed` a line for each prompt that ends in a colon."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*CTL, *args], environment(folder, TERM="xterm", COLUMNS="80", **more))
    told, lines = b"", [line.encode() for line in typed.splitlines()]
    asked = 0
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        told += part
        while lines and told.count(b": ") > asked:
            asked += 1
            os.write(terminal, lines.pop(0) + b"\n")
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), told.decode()


def test_a_password_is_asked_for_twice_and_never_shown(folder: Path, double: ApiDouble) -> None:
    double.on("POST", "/crypto/setup", {"initialized": True, "locked": False, "reason": ""}, status=201)
    code, told = on_terminal(folder, "setup", typed="first one\nother\nright one\nright one")
    assert code == 0
    assert double.sent[0].document == {"password": "right one"}
    assert "not the same" in told
    assert "right one" not in told


def test_a_terminal_gets_colours_unless_no_color(folder: Path, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [app])
    assert "\x1b[32mrunning" in on_terminal(folder, "ps")[1]
    assert "\x1b[" not in on_terminal(folder, "ps", NO_COLOR="1")[1]


def test_a_no_changes_nothing(folder: Path, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps/hello", app)
    code, _ = on_terminal(folder, "apps", "uninstall", "hello", typed="n")
    assert code == 130
    assert {each.method for each in double.sent} == {"GET"}


def test_a_socket_on_the_line_wins_over_a_url_in_the_environment(folder: Path, double: ApiDouble) -> None:
    double.on("GET", "/apps", [])
    variables = environment(folder, PICCOLO_URL="http://127.0.0.1:1")
    line = [*CTL, "--socket", str(folder / "api.sock"), "ps", "-o", "json"]
    done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[]\n"
