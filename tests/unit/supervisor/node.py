"""Runs a supervisor for a test: `python node.py FILE`, FILE a JSON {state, run, table, externals, policy, pace, modules}."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from piccolod.config import Config, ModuleConfig, Node
from piccolod.errors import PiccoloError
from piccolod.kernel import ModuleSpec, Spawn
from piccolod.supervisor.restart import Policy
from piccolod.supervisor.revision import Pace
from piccolod.supervisor.supervisor import Supervisor


def main() -> int:
    wanted = json.loads(Path(sys.argv[1]).read_text())
    config = Config(
        node=Node(name="test", state_dir=wanted["state"], run_dir=wanted["run"]),
        modules={name: ModuleConfig(**each) for name, each in wanted.get("modules", {}).items()},
    )
    table = [
        ModuleSpec(
            **{**row, "spawn": Spawn(row.get("spawn", "fork")), **{k: tuple(v) for k, v in row.items() if isinstance(v, list)}}
        )
        for row in wanted["table"]
    ]
    try:
        supervisor = Supervisor(
            config,
            table,
            externals=wanted.get("externals", False),
            policy=Policy(**wanted.get("policy", {})),
            pace=Pace(**wanted.get("pace", {})),
        )
    except PiccoloError as error:
        print(f"{error.detail} | {error.hint}", file=sys.stderr)
        return error.exit_code
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
