"""What holds for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

from tests.node import Node

_SHOWN = 4000  # characters of what each node said, when a test fails

# Some tests speak to etcd by grpc, which leaves threads; others fork this process, and what is forked beside them crashes.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A shell that starts this in the background has it ignore Ctrl-C, and what is started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that speak to etcd come last."""
    items.sort(key=lambda item: "etcd" in item.nodeid.partition("::")[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows the last of what every node said: its folder is gone when somebody reads that."""
    report = yield
    if report.failed:
        for node in sorted(Node.known, key=lambda each: each.folder):
            report.sections.append((f"{node.name} said, in {node.folder}", node.tail(_SHOWN)))
            if not node.folder.exists():
                Node.known.discard(node)
    return report
