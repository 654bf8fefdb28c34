#!/bin/sh
# Writes STATE/piccolod.toml for a node that lives below one folder. Usage: write-config.sh PYTHON STATE PORT
# A file that was edited (its first line is another) is left as it is.
set -eu

exec "$1" - "$2" "$3" <<'PY'
import json
import os
import sys
from pathlib import Path

MARK = "# Written by `make run`; remove this line to keep your own changes."

state, port = Path(sys.argv[1]).absolute(), sys.argv[2]
if not port.isdecimal() or not 1 <= int(port) <= 65535:
    sys.exit(f"PORT={port} is not a port: 1 to 65535")
file = state / "piccolod.toml"
if file.exists() and not file.read_text(encoding="utf-8").startswith(MARK):
    print(f"using {file} as it is: PORT and STATE of the command line do not change it", file=sys.stderr)
    sys.exit()
state.mkdir(mode=0o700, parents=True, exist_ok=True)
new = file.with_suffix(".new")
new.write_text(
    f"{MARK}\n"
    "[node]\n"
    f"state_dir = {json.dumps(str(state / 'state'))}\n"
    f"run_dir = {json.dumps(str(state / 'run'))}\n"
    "\n"
    "[api]\n"
    f"listen = [\"127.0.0.1:{int(port)}\"]\n",
    encoding="utf-8",
)
os.replace(new, file)
PY
