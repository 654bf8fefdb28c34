"""`make run`, the first command that a person types: it serves, and Ctrl-C leaves nothing."""

from __future__ import annotations

import signal
import subprocess

from tests.node import PICCOLOD, ROOT, Node, Process, until


class Made(Node):
    """A node as `make run` starts it, in a folder of its own."""

    def spawn(self, *command: str) -> Process:
        run = ["sh", str(ROOT / "deploy/run.sh"), str(PICCOLOD.with_name("python")), str(self.folder), str(self.port)]
        with self.output.open("ab") as output:
            return subprocess.Popen(run, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=ROOT)


def test_make_run_serves_on_its_port_until_ctrl_c_and_leaves_no_process() -> None:
    with Made() as node:
        node.config_file.unlink()  # run.sh writes it
        node.start()
        assert node.fetch(node.port, "/api/v1/health/live").status == 200
        before = node.processes()
        assert len(before) > 10
        assert node.stop(signal.SIGINT) < 8.0
        until(lambda: not [one for one in before if one.is_running() and one.status() != "zombie"], "no process left", 5)
