#!/usr/bin/env bash
# Generates the Python stubs beside the protos. They are checked in; a test compares them with a fresh run.
set -euo pipefail
cd "$(dirname "$0")"
"${PYTHON:-python}" -m grpc_tools.protoc -I . --python_out="${OUT:-.}" --pyi_out="${OUT:-.}" --grpc_python_out="${OUT:-.}" \
  telltale/v1/*.proto
