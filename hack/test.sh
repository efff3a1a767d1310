#!/usr/bin/env bash
# Runs every test: once with the race detector for everything but the tests
# with whole meshes, which measure time and run alone afterwards. With a folder
# as argument, for example ratelimit, only its tests, and those without the race
# detector, which takes three to five times as long, with fewer random cases and with
# the newest Envoy alone (-short leaves no test out): for the time between edits.
set -euo pipefail
cd "$(dirname "$0")/.."
# With the race detector there is C, and so PKCS #11 can be tested. The linters run
# go vet; many tests wait, so more packages and tests than cores run at once.
race() { CGO_ENABLED=1 go test -race -vet=off -tags pkcs11 -shuffle=on -p 3 -parallel 4 -timeout 20m "$@"; }
if [ -n "${1:-}" ]; then
  # Most of what runs in parallel waits. The linters run go vet. Compiler, linker and
  # tests live too briefly for it to pay that they collect garbage often.
  # What takes longest begins first.
  first=()
  for p in ca/ledger/pglog pilot/security pilot/translate ratelimit/redisstore; do
    [[ $p/ != "$1"/* ]] || first+=("./$p")
  done
  GOGC=400 go test -short -vet=off -p 4 -parallel 10 -timeout 20m "${first[@]}" "./$1/..."
  exit
fi
mapfile -t unit < <(go list ./... | grep -v -e '/e2e$' -e '/deploy/compose$')
from=$SECONDS
race "${unit[@]}"
echo "-- packages: $((SECONDS - from)) s"
from=$SECONDS
# The ledger in etcd is in programs that are built for it.
go test -vet=off -tags etcd -shuffle=on -parallel 8 ./ca/ledger/etcdstore
go test -vet=off -tags etcd -run TestThreeReplicasWithoutSQL ./cmd/writ-ca
echo "-- etcd: $((SECONDS - from)) s"
from=$SECONDS
# Most of a mesh's life in a test is waiting: four at a time fit on two cores.
go test -vet=off -shuffle=on -count=1 -timeout 30m -parallel 4 ./e2e
echo "-- meshes: $((SECONDS - from)) s"
from=$SECONDS
[ "$(id -u)" != 0 ] || hack/build-tool.sh docker-compose # only root runs the tests with it
go test -vet=off -shuffle=on -count=1 -timeout 30m ./deploy/compose
echo "-- compose: $((SECONDS - from)) s"
