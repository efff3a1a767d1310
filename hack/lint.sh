#!/usr/bin/env bash
# Runs golangci-lint in the version that hack/tools/go.mod pins.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.tools/bin/golangci-lint
if [ ! -x "$bin" ]; then
  mkdir -p .tools/bin
  (cd hack/tools && go build -o "$bin" github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
fi
# A cache of this checkout's own: what another checkout left behind names files
# there, and is wrong when they are gone.
GOLANGCI_LINT_CACHE=$PWD/.tools/lint-cache "$bin" run ./...
