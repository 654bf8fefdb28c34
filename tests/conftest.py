"""What holds for every test."""

from __future__ import annotations

import os
import signal

import pytest

# Some tests speak to etcd by grpc, which leaves threads; others fork this process, and what is forked beside them crashes.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A shell that starts this in the background has it ignore Ctrl-C, and what is started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that speak to etcd come last."""
    items.sort(key=lambda item: "etcd" in item.nodeid.partition("::")[0])
