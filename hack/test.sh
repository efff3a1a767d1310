#!/usr/bin/env bash
# Runs every test: with the race detector all but those that only read the repository and
# those of the ledger in etcd, which go side by side with what has many random cases, and
# those with whole meshes, which measure time and run alone. With a folder as argument, for
# example ratelimit, only its tests, and those without the race detector, which takes three
# to five times as long, with fewer random cases and with the newest Envoy alone (-short
# leaves no test out): for the time between edits.
set -euo pipefail
cd "$(dirname "$0")/.."
slow=(pilot/security ca/ledger/pglog pilot/translate ratelimit/redisstore) # to begin with
if [ -n "${1:-}" ]; then
  # Most of what runs in parallel waits. The linters run go vet. Compiler, linker and
  # tests live too briefly for it to pay that they collect garbage often.
  first=()
  for p in "${slow[@]}"; do
    [[ $p/ != "$1"/* ]] || first+=("./$p")
  done
  GOGC=400 go test -short -vet=off -p 4 -parallel 10 -timeout 20m "${first[@]}" "./$1/..."
  exit
fi
# With the race detector there is C, and so PKCS #11 can be tested. The linters run
# go vet; many tests wait, so more packages and tests than cores run at once. Unless told
# otherwise each program waits a second before it ends, and garbage is collected often.
race() { GOGC=400 GORACE=atexit_sleep_ms=100 CGO_ENABLED=1 go test -race -vet=off -tags pkcs11 -shuffle=on -p 3 -parallel 4 -timeout 20m "$@"; }
repository() { go test -vet=off -shuffle=on . ./docs; }
# Tests that take a part of their random cases under the race detector (proctest.Few) take
# all of them here.
random() {
  local files tests
  mapfile -t files < <(grep -rl --include='*_test.go' -F 'proctest.Few()' .)
  tests=$(awk '/^func Test/ { name = $2; sub(/\(.*/, "", name) } /proctest\.Few\(\)/ { print name }' "${files[@]}" | sort -u | paste -sd '|')
  go test -vet=off -shuffle=on -run "^($tests)\$" $(dirname "${files[@]}" | sort -u)
}
# The ledger in etcd is in programs that are built for it.
etcd() { go test -vet=off -tags etcd -shuffle=on -parallel 8 ./ca/ledger/etcdstore; }
replicas() { go test -vet=off -tags etcd -run TestThreeReplicasWithoutSQL ./cmd/writ-ca; }
# together runs functions side by side and fails if one of them does.
together() {
  local running=() result=0
  for f in "$@"; do
    "$f" &
    running+=($!)
  done
  for pid in "${running[@]}"; do
    wait "$pid" || result=1
  done
  return $result
}
mapfile -t unit < <(go list ./... | grep -v -E "^$(go list -m)(|/docs|/e2e|/deploy/compose)$")
from=$SECONDS
race "${slow[@]/#/./}" "${unit[@]}"
echo "-- packages: $((SECONDS - from)) s"
from=$SECONDS
together repository random etcd replicas
echo "-- repository, random cases and etcd: $((SECONDS - from)) s"
from=$SECONDS
# Most of a mesh's life in a test is waiting: four at a time fit on two cores.
go test -vet=off -shuffle=on -count=1 -timeout 30m -parallel 4 ./e2e
echo "-- meshes: $((SECONDS - from)) s"
from=$SECONDS
go test -vet=off -shuffle=on -count=1 -timeout 30m ./deploy/compose
echo "-- compose: $((SECONDS - from)) s"
