#!/bin/sh
# Runs piccolod in the foreground with all its state below one folder. Usage: run.sh PYTHON STATE PORT
set -eu

python=$1 state=$2 port=$3

sh "$(dirname "$0")/write-config.sh" "$python" "$state" "$port"
exec "$(dirname "$python")/piccolod" --config "$state/piccolod.toml"
