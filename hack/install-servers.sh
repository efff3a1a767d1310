#!/usr/bin/env bash
# Installs the servers that tests run against, where that is possible (root on
# Debian); elsewhere says what will be skipped. With CI=true missing is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

# need COMMAND PACKAGE
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need redis-server redis-server
need softhsm2-util softhsm2
need certbot certbot
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need initdb postgresql
# For the mesh under Compose: deploy/compose.
need dockerd docker.io
need docker "$(apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli || echo docker.io)"
need iptables-restore iptables
need ip iproute2
need unshare util-linux

if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}; the tests that need it are skipped (install it as root to run them)" >&2
    [ "${CI:-}" != true ]
    exit
  fi
  echo "installing ${missing[*]}" >&2
  # Tests start what they need by themselves: no service has to run.
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
    { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null; }
fi

# A Kubernetes API takes minutes to build; a stand-in is there without it.
if [ ! -x .tools/bin/kube-apiserver ]; then
  echo "no kube-apiserver: the tests that a real Kubernetes API would run too are run with a stand-in only (make kubernetes-tools builds it)" >&2
fi
