#!/usr/bin/env bash
# Generates the Go code of proto/ with pinned tools: protoc from grpcio-tools
# (hashes in hack/python/generate.txt), the plugins from go.mod. With --check it writes
# nothing to proto/ and fails if what is there is not what proto/ says.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.tools/generate
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r hack/python/generate.txt
fi
bin=$PWD/.tools/bin
mkdir -p "$bin"
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
include=$("$venv/bin/python" -c 'import grpc_tools, os; print(os.path.join(os.path.dirname(grpc_tools.__file__), "_proto"))')
out=.
if [ "${1:-}" = --check ]; then
  out=$(mktemp -d)
  trap 'rm -r "$out"' EXIT
else
  find proto -name '*.pb.go' -delete
fi
mapfile -t protos < <(find proto -name '*.proto' | sort)
"$venv/bin/python" -m grpc_tools.protoc -I proto -I "$include" \
  --plugin=protoc-gen-go="$bin/protoc-gen-go" --plugin=protoc-gen-go-grpc="$bin/protoc-gen-go-grpc" \
  --go_out="$out" --go_opt=module=github.com/writ-mesh/writ \
  --go-grpc_out="$out" --go-grpc_opt=module=github.com/writ-mesh/writ \
  "${protos[@]}"
generated() { (cd "$1" && find proto -name '*.pb.go' -exec sha256sum {} + | sort -k 2); }
if [ "$out" != . ] && ! diff <(generated .) <(generated "$out"); then
  echo "generate: what proto/ has (<) is not what its files say (>): run make generate" >&2
  exit 1
fi
