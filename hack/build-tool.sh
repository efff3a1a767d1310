#!/usr/bin/env bash
# Builds programs that tests and linters need into .tools/bin, each from the module
# below hack/ that pins its version, unless it is there. Two that build the same wait
# for each other.
# usage: build-tool.sh step-ca|docker-compose|golangci-lint ...
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .tools/bin
for name in "$@"; do
  case $name in
  step-ca) module=stepca package=. ;; # the upstream authority of a test of ca
  docker-compose) module=compose package=github.com/docker/compose/v2/cmd ;; # where fetch-compose.sh finds none
  golangci-lint) module=tools package=github.com/golangci/golangci-lint/v2/cmd/golangci-lint ;;
  *) echo "build-tool: $name is not known" >&2; exit 2 ;;
  esac
  bin=$PWD/.tools/bin/$name
  exec 9>".tools/$name.lock"
  ! command -v flock >/dev/null || flock 9
  if [ ! -x "$bin" ] || [ -n "$(find "hack/$module" -newer "$bin" -print -quit)" ]; then
    echo "building $name" >&2
    (cd "hack/$module" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$bin" $package)
    touch "$bin"
  fi
  exec 9>&-
done
