#!/usr/bin/env bash
# Runs golangci-lint in the version that hack/tools/go.mod pins.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.tools/bin/golangci-lint
if [ ! -x "$bin" ]; then
  mkdir -p .tools/bin
  (cd hack/tools && go build -o "$bin" github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
fi
"$bin" run ./...
