"""What modules print: always read, rotated, and never a reason for anybody to wait."""

from __future__ import annotations

import os
import signal
import time

from piccolod.supervisor.log_writer import RotatedLog
from tests.unit.supervisor.conftest import row, wait_for


def test_a_log_is_rotated_and_its_size_bounded(tmp_path):
    log = RotatedLog(str(tmp_path / "m.log"), most_bytes=1000, files=4)
    for number in range(1000):
        log.write(b"%08d\n" % number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["m.log", "m.log.1", "m.log.2", "m.log.3"]
    assert all(file.stat().st_size <= 1000 for file in files)
    kept = b"".join((tmp_path / name).read_bytes() for name in ("m.log.3", "m.log.2", "m.log.1", "m.log"))
    assert kept.splitlines()[-1] == b"00000999"
    assert [int(line) for line in kept.splitlines()] == list(range(int(kept.splitlines()[0]), 1000))


def test_a_removed_log_is_made_anew(tmp_path):
    log = RotatedLog(str(tmp_path / "m.log"))
    log.write(b"one\n")
    (tmp_path / "m.log").unlink()
    log.write(b"two\n")
    assert (tmp_path / "m.log").read_bytes() == b"two\n"


def test_what_a_module_prints_is_on_disk_and_in_the_answer(make_node):
    node = make_node([row("m")], policy={"first_s": 60.0})
    node.words("m", "crash")
    node.start(ready=False)
    wait_for(lambda: any("the last word of m" in line for line in node.ask("logs", name="m")), "it is in memory")
    wait_for(lambda: b"the last word of m" in node.on_disk("m"), "it is on disk")


def test_a_blocked_disk_stops_neither_modules_nor_the_supervisor_and_the_loss_is_counted(make_node):
    node = make_node([row("loud"), row("m")])
    node.words("loud", "chatter")
    node.start()
    writer = node.tree()["log_writer"]["pid"]
    os.kill(writer, signal.SIGSTOP)
    try:
        wait_for(lambda: node.tree()["log_writer"]["dropped"] > 100, "what does not fit is dropped")
        pid = node.pid("m")
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        node.wait_replaced("m", pid)
        assert time.monotonic() - began < 1.0
        assert node.module("loud")["restarts"] == 0
    finally:
        os.kill(writer, signal.SIGCONT)
    wait_for(lambda: any(b"bytes of this log were lost" in file.read_bytes() for file in node.paths.log.glob("loud.log*")),
             "the log says what it lost")  # fmt: skip


def test_a_killed_log_writer_is_replaced(make_node):
    node = make_node([row("m")]).start()
    writer = node.tree()["log_writer"]["pid"]
    os.kill(writer, signal.SIGKILL)
    wait_for(lambda: node.tree()["log_writer"]["pid"] != writer, "a new writer")
    node.kill("m")
    wait_for(lambda: b"died module=m" in node.on_disk("supervisor"), "it writes")


def test_old_lines_are_known_after_a_restart_of_the_supervisor(make_node):
    node = make_node([row("m")], policy={"first_s": 60.0})
    node.words("m", "crash")
    node.start(ready=False)
    wait_for(lambda: b"last word" in node.on_disk("m"), "on disk")
    node.stop()
    node.words("m")
    node.start()
    assert any("last word" in line for line in node.ask("logs", name="m"))
