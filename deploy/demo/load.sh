#!/bin/sh
# Builds the demo image into the containers of STATE, whether piccolod runs or not. Usage: load.sh PYTHON STATE PORT
set -eu

python=$1 state=$2 port=$3
here=$(cd "$(dirname "$0")" && pwd)
busybox=$(command -v busybox) || { echo "demo-image: busybox is not installed: run make deps" >&2; exit 1; }

[ -e "$state/piccolod.toml" ] || sh "$here/../write-config.sh" "$python" "$state" "$port"
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
trap 'exit 130' INT TERM HUP
cp -R "$here/Containerfile" "$here/rootfs" "$context"
cp "$busybox" "$context/rootfs/bin/busybox"
for name in sh cat sleep wget; do ln -s busybox "$context/rootfs/bin/$name"; done

"$python" "$here/build.py" "$state/piccolod.toml" "$context" localhost/piccolo-demo:1
