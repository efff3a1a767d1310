#!/usr/bin/env bash
# Runs golangci-lint in the version that hack/tools/go.mod pins.
set -euo pipefail
cd "$(dirname "$0")/.."
hack/build-tool.sh golangci-lint
# A cache of this checkout's own: what another checkout left behind names files
# there, and is wrong when they are gone.
GOLANGCI_LINT_CACHE=$PWD/.tools/lint-cache .tools/bin/golangci-lint run ./...
