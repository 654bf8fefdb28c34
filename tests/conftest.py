"""What holds for every test."""

from __future__ import annotations

import os

import pytest

# Some tests speak to etcd by grpc, which leaves threads; others fork this process, and what is forked beside them crashes.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that speak to etcd come last."""
    items.sort(key=lambda item: "etcd" in item.nodeid.partition("::")[0])
