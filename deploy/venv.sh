#!/bin/sh
# Builds the virtual environment and installs the project into it, editable. Usage: venv.sh PYTHON FOLDER REQUIREMENT
# A folder whose interpreter does not start any more (the system's Python was replaced) is built again.
set -eu

python=$1 folder=$2 requirement=$3

if ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then
    echo "venv: building $folder with $("$python" --version)"
    rm -rf "$folder"
    "$python" -m venv "$folder"
fi
echo "venv: installing $requirement"
# compat: a plain path instead of an import hook, which costs every process that is executed some 30 ms
"$folder/bin/python" -m pip install -q --disable-pip-version-check --config-settings editable_mode=compat -e "$requirement"
