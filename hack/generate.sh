#!/usr/bin/env bash
# Generates the Go code of proto/. Needs $PROTOC: a command that acts as protoc
# (`make generate` provides one from the pinned grpcio-tools).
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PROTOC:=.tools/python/bin/python -m grpc_tools.protoc}"
bin=$PWD/.tools/bin
mkdir -p "$bin"
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
include=$(dirname "$(.tools/python/bin/python -c 'import grpc_tools; print(grpc_tools.__file__)')")/_proto
find proto -name '*.pb.go' -delete
# shellcheck disable=SC2086 # PROTOC is a command with arguments
$PROTOC -I proto -I "$include" \
  --plugin=protoc-gen-go="$bin/protoc-gen-go" --plugin=protoc-gen-go-grpc="$bin/protoc-gen-go-grpc" \
  --go_out=. --go_opt=module=github.com/writ-mesh/writ \
  --go-grpc_out=. --go-grpc_opt=module=github.com/writ-mesh/writ \
  $(find proto -name '*.proto' | sort)
