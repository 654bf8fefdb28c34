"""Processes that outlive the supervisor are made without its waiting for anybody."""

from __future__ import annotations

import subprocess
import sys

from tests.unit.supervisor.conftest import ROOT

# In a process of its own, which adopts orphans for a moment as the supervisor does.
_FROZEN = """
import os, signal, time
from piccolod.supervisor import detach

made = []

def frozen(*_):
    os.kill(os.getpid(), signal.SIGSTOP)

detach._intermediate = frozen
began = time.monotonic()
try:
    detach.spawn(["/bin/true"], {}, 2)
except OSError as error:
    print(error, time.monotonic() - began < 1.0)
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("nobody is left")
"""


def test_an_intermediate_that_is_frozen_is_killed_and_named_a_failure():
    done = subprocess.run([sys.executable, "-c", _FROZEN], cwd=ROOT, capture_output=True, text=True, timeout=10)
    assert done.stdout.splitlines() == ["/bin/true cannot be started True", "nobody is left"], done
