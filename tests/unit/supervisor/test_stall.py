from __future__ import annotations

import os
import subprocess
import sys

from piccolod.supervisor.stall import Stall, Wait, step


def test_a_wait_counts_from_the_first_look_that_saw_it():
    waits = step({}, {7: 100}, 10.0)
    assert step(waits, {7: 100}, 11.5) == {7: Wait(100, 10.0)}


def test_a_thread_that_ran_in_between_waits_anew():
    assert step({7: Wait(100, 10.0)}, {7: 101}, 11.5) == {7: Wait(101, 11.5)}


def test_a_thread_that_waits_no_more_is_forgotten():
    assert step({7: Wait(100, 10.0), 8: Wait(5, 10.0)}, {8: 5}, 11.0) == {8: Wait(5, 10.0)}


def test_a_process_that_sleeps_or_works_does_not_stall():
    loops = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(loops, stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout is not None
            worker.stdout.readline()
            for pid in (worker.pid, os.getpid()):
                stall = Stall(pid)
                stall.look(0.0)
                assert stall.look(100.0) == 0.0
        finally:
            worker.kill()


def test_a_process_that_has_ended_does_not_stall():
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert Stall(ended.pid).look(1.0) == 0.0
