#!/usr/bin/env bash
# Builds the container images of deploy/compose with `docker build`, FROM scratch,
# from what is on this machine: the static binaries in bin/, an Envoy, and Redis
# and iptables with their libraries. No registry is asked.
#
# usage: build.sh [IMAGE...]     TAG (default dev) and ENVOY are taken from the environment
set -euo pipefail
cd "$(dirname "$0")/../.."
tag=${TAG:-dev}
work=bin/images
services=(ca pilot authz ratelimit nodeagent)
images=("$@")
[ $# -gt 0 ] || images=("${services[@]}" writ pod bookinfo envoy iptables redis)

fail() { echo "build.sh: $*" >&2; exit 1; }
command -v docker >/dev/null || fail "docker is needed: install docker.io"
docker version >/dev/null 2>&1 || fail "no Docker daemon answers; start one, or set DOCKER_HOST"

program() { # program NAME PACKAGE: the path of a program of this machine
  PATH=$PATH:/usr/sbin:/sbin command -v "$1" || fail "$1 is needed for its image: install $2"
}

envoy() {
  local found=${ENVOY:-}
  [ -n "$found" ] || found=$(ls -d .tools/envoy-*/bin/envoy 2>/dev/null | sort -V | tail -1)
  [ -n "$found" ] || found=$(command -v envoy) || fail "Envoy is needed for its image: make envoy, or set \$ENVOY"
  readlink -f "$found"
}

put() { # put FILE DEST: a hard link where that is possible, else a copy
  mkdir -p "$(dirname "$2")"
  cp -fl "$(readlink -f "$1")" "$2" 2>/dev/null || cp -fL "$1" "$2"
}

# libraries ROOT FILE...: the dynamic loader and the libraries that files need
libraries() {
  local root=$1
  shift
  ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ "^/" {print $3} $1 ~ "^/" && $2 ~ "^\\(" {print $1}' | sort -u | while read -r l; do
    [ -e "$root$l" ] || put "$l" "$root$l"
  done
}

# resolver ROOT: what getaddrinfo of glibc loads by itself
resolver() {
  local dir
  dir=$(dirname "$(ldconfig -p | awk '/libc\.so\.6/{print $NF; exit}')")
  for l in libnss_files.so.2 libnss_dns.so.2 libresolv.so.2; do
    [ ! -e "$dir/$l" ] || put "$dir/$l" "$1$dir/$l"
  done
  mkdir -p "$1/etc"
  echo 'hosts: files dns' >"$1/etc/nsswitch.conf"
}

# roots ROOT: the public authorities, where this machine has them, for key sets
# and quota stores that are reached over TLS
roots() {
  [ ! -e /etc/ssl/certs/ca-certificates.crt ] || put /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"
}

context() { # context IMAGE: what its Dockerfile copies, in $work/IMAGE/root
  local image=$1 root=$work/$1/root
  rm -rf "${work:?}/$image"
  mkdir -p "$root"
  cp "deploy/images/$image/Dockerfile" "$work/$image/Dockerfile"
  case $image in
  writ | bookinfo)
    put "bin/$image" "$root/usr/bin/$image"
    put bin/writ-pod "$root/usr/bin/writ-pod"
    ;;
  pod)
    put bin/writ-pod "$root/usr/bin/writ-pod"
    ;;
  envoy)
    put "$(envoy)" "$root/usr/bin/envoy"
    put bin/writ-pod "$root/usr/bin/writ-pod"
    libraries "$root" "$(envoy)"
    resolver "$root"
    roots "$root"
    ;;
  iptables)
    local restore lib
    restore=$(program iptables-restore iptables)
    lib=$(dirname "$(dpkg -L iptables 2>/dev/null | grep '/libxt_owner\.so$' || ls -d /usr/lib*/*/xtables/libxt_owner.so /usr/lib*/xtables/libxt_owner.so 2>/dev/null | head -1)")
    [ -e "$lib/libxt_owner.so" ] || fail "the extensions of iptables are not where they are looked for"
    put "$restore" "$root/usr/sbin/iptables-restore"
    for x in libxt_standard libxt_tcp libxt_owner libxt_REDIRECT; do
      [ ! -e "$lib/$x.so" ] || put "$lib/$x.so" "$root$lib/$x.so"
    done
    libraries "$root" "$restore" "$lib"/libxt_{tcp,owner}.so
    mkdir -p "$root/run" "$root/etc"
    # The names of protocols; rules are written with them.
    printf 'icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n' >"$root/etc/protocols"
    ;;
  redis)
    for p in redis-server redis-cli; do
      put "$(program $p redis-server)" "$root/usr/bin/$p"
      libraries "$root" "$(program $p redis-server)"
    done
    ;;
  *)
    put "bin/writ-$image" "$root/usr/bin/writ-$image"
    put bin/writ-pod "$root/usr/bin/writ-pod"
    roots "$root"
    # State, sockets, the trust bundle, the join token and the proxies' key: volumes take the
    # owner and the mode of the folder that they are mounted on.
    install -d -m 700 "$work/$image/own/lib/writ" "$work/$image/own/run/admin" "$work/$image/own/run/token" "$work/$image/own/run/proxies"
    install -d -m 755 "$work/$image/own/run" "$work/$image/own/run/trust" "$work/$image/own/run/agent"
    ;;
  esac
  if [ "$image" = writ ]; then
    install -d -m 700 "$work"/writ/own/run/{admin,proxies,tokens/pilot,tokens/authz,tokens/ratelimit,tokens/nodeagent}
    install -d -m 755 "$work/writ/own/run" "$work/writ/own/run/bootstrap"
  fi
}

for image in "${images[@]}"; do
  [ -e "deploy/images/$image/Dockerfile" ] || fail "there is no image $image"
  context "$image"
  docker build -q -t "writ/$image:$tag" "$work/$image" 2>"$work/$image/log" >/dev/null || { cat "$work/$image/log" >&2; fail "image $image could not be built"; }
  rm -rf "${work:?}/$image/root"
  docker image inspect -f "{{index .RepoTags 0}} {{.Size}}" "writ/$image:$tag" | awk '{printf "%-22s %6.1f MB\n", $1, $2/1e6}'
done
