#!/usr/bin/env bash
# Installs the servers that tests run against, where that is possible (root on
# Debian); elsewhere says what will be skipped. With CI=true missing is an error.
set -euo pipefail
missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
    { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null; }
  exit 0
fi
echo "missing: ${missing[*]}; the tests that need it are skipped (install it as root to run them)" >&2
[ "${CI:-}" != true ]
