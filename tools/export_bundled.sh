#!/bin/sh
# Writes the ONNX files beside the bundled weights again, each compared with PyTorch first. Run it when weights change.
# tools/export_bundled.sh [NAME ...]
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ $# -gt 0 ] || set -- $(ls skd_core/weights | sed -n 's/\.safetensors$//p')
for name in "$@"; do
    "$python" -m skd_core.cli export "$name"
done
