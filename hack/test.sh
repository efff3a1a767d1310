#!/usr/bin/env bash
# Runs every test: once with the race detector for everything but the tests
# with whole meshes, which measure time and run alone afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t unit < <(go list ./... | grep -v -e '/e2e$' -e '/deploy/compose$')
CGO_ENABLED=1 go test -race -shuffle=on -timeout 20m "${unit[@]}"
go test -shuffle=on -count=1 -timeout 30m -p 1 ./e2e ./deploy/compose
