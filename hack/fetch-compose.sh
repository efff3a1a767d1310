#!/usr/bin/env bash
# Puts Docker Compose 2 into .tools/bin for the test of deploy/compose, unless it is there:
# Debian 13's, whose signed package is unpacked and not installed, for Debian 12's is too
# old (up --wait); where apt does not get at that, it is built from source in minutes.
# Only root runs the test.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
bin=$PWD/.tools/bin/docker-compose
if [ "$(id -u)" != 0 ] || [ -x "$bin" ]; then
  exit
fi
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
from_debian() {
  { command -v apt-get && command -v dpkg-deb; } >/dev/null || return
  mkdir -p "$dir"/lists/partial "$dir"/cache/archives/partial
  echo "deb http://deb.debian.org/debian trixie main" >"$dir/sources.list"
  local apt=(apt-get -q -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  "${apt[@]}" update >/dev/null && (cd "$dir" && "${apt[@]}" download docker-compose >/dev/null) || return
  dpkg-deb -x "$dir"/docker-compose_*.deb "$dir/package" || return
  local plugin=$dir/package/usr/libexec/docker/cli-plugins/docker-compose
  "$plugin" version >/dev/null || return
  mkdir -p .tools/bin
  mv "$plugin" "$bin"
}
if ! from_debian; then
  echo "Debian 13's docker-compose is not to be had; building one" >&2
  hack/build-tool.sh docker-compose
fi
