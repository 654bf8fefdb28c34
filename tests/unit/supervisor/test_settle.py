"""What the zygote does with its memory before a fork. Each case runs in a process of its own: it cannot be undone."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="speaks of CPython's allocator")


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_libraries_work_in_parent_and_child_after_their_pages_were_let_go():
    assert (
        run("""
        import os, sqlite3, zlib
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from piccolod.supervisor import settle

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[2])  # pages of files

        def use():
            key = AESGCM(bytes(32))
            assert key.decrypt(bytes(12), key.encrypt(bytes(12), b"text", None), None) == b"text"
            assert sqlite3.connect(":memory:").execute("select 6 * 7").fetchone() == (42,)
            assert zlib.decompress(zlib.compress(b"x" * 1000)) == b"x" * 1000

        use()
        before = resident()
        settle.unmap_code()
        assert resident() < before / 2, (before, resident())
        pid = os.fork()
        use()
        if pid == 0:
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        """)
        == "0"
    )


def test_after_the_holes_are_filled_what_is_made_lies_on_fresh_pages():
    """Objects of a small size come one after the other, not between those that were there."""
    assert (
        run("""
        import random
        from piccolod.supervisor import settle

        kept = [bytes(60) for _ in range(20_000)]
        for index in random.Random(1).sample(range(20_000), 5_000):
            kept[index] = None
        old = {id(one) >> 12 for one in kept if one is not None}
        settle.fill_holes()
        made = [bytes(60) for _ in range(500)]
        print(sum(id(one) >> 12 in old for one in made))
        """)
        == "0"
    )


def test_the_type_cache_holds_no_name_of_the_parent_over_a_fork():
    """Else the child's first look-ups write to the pages of all those names, to take their references back."""
    assert (
        run("""
        import sys
        from piccolod.supervisor import settle

        class Thing:
            pass

        name = "".join(["never", "_seen", "_before"])
        name = sys.intern(name)
        getattr(Thing, name, None)
        held = sys.getrefcount(name)
        settle.settle()
        print(sys.getrefcount(name) < held)
        """)
        == "True"
    )


def test_after_the_heap_is_filled_what_malloc_serves_lies_on_fresh_pages():
    assert (
        run("""
        import random
        from piccolod.supervisor import settle

        kept = [bytes(size) for size in random.Random(1).choices(range(600, 6_000), k=5_000)]
        for index in random.Random(2).sample(range(5_000), 1_500):
            kept[index] = None
        last = max(id(one) for one in kept if one is not None)
        settle.fill_heap()
        made = [bytes(size) for size in random.Random(3).choices(range(600, 6_000), k=200)]
        print(sum(id(one) < last for one in made))
        """)
        == "0"
    )
