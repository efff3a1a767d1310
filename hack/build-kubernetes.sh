#!/usr/bin/env bash
# Builds etcd and kube-apiserver from hack/kubernetes for the tests with a real
# Kubernetes API. It takes two to six minutes, once, so that `make test` goes without:
# where they were not built those tests are skipped, and a stand-in that the same tests
# hold to what the real one does takes its place.
set -euo pipefail
cd "$(dirname "$0")/kubernetes"
bin=../../.tools/bin
mkdir -p "$bin"
version=$(sed -nE 's|^\s*k8s.io/kubernetes (v1\.[0-9]+\.[0-9]+).*|\1|p' go.mod | head -1)
minor=${version#v1.} minor=${minor%%.*}
info=k8s.io/component-base/version
build() { # build NAME PACKAGE
  [ -x "$bin/$1" ] && [ ! go.mod -nt "$bin/$1" ] && return
  echo "building $1" >&2
  CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X $info.gitVersion=$version -X $info.gitMajor=1 -X $info.gitMinor=$minor" -o "$bin/$1" "$2"
  touch "$bin/$1"
}
build etcd go.etcd.io/etcd/server/v3
build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
