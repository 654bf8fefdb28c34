"""What holds for every test."""

from __future__ import annotations

import os

# Some tests speak to etcd by grpc, others fork this process afterwards: in their children grpc's own handlers of forks crash.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
