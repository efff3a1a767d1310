#!/usr/bin/env bash
# Runs the tests with whole meshes again and again, each time in another order,
# and ends at the first failure. One line for each run. Arguments: how often, and
# flags of the test binary, for example -test.run Rotation.
set -euo pipefail
cd "$(dirname "$0")/../e2e"
times=${1:-20}
shift || true
log=$(mktemp) bin=$(mktemp)
trap 'rm -f "$log" "$bin"' EXIT
go test -c -o "$bin" .
for i in $(seq "$times"); do
  from=$SECONDS
  if ! CI=true "$bin" -test.shuffle=on -test.parallel 4 -test.timeout 30m -test.v "$@" >"$log" 2>&1; then
    grep -v -e '^=== ' -e '^--- PASS' -e '^    --- PASS' "$log" || true
    echo "run $i of $times: FAILED after $((SECONDS - from)) s"
    exit 1
  fi
  echo "run $i of $times: $(grep -c '^--- PASS' "$log") passed, $(grep -c '^--- FAIL' "$log" || true) failed, $(grep -c '^--- SKIP' "$log" || true) skipped, $((SECONDS - from)) s"
done
