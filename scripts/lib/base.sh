# shellcheck shell=bash
# The base of every script here: messages, waiting, HTTP, file systems. Starts nothing.

# shellcheck disable=SC2034 # for those who source this
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Progress and messages go to stderr, so that stdout has only the requested output.
say() { printf '%s\n' "$*" >&2; }

# Exits with a message. Extra arguments are further lines.
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" -eq 0 ]; }

# The type of the file system with a path or its nearest existing parent.
filesystem_of() {
  local path=$1
  while [ ! -e "$path" ]; do path=$(dirname "$path"); done
  stat -f -c %T "$path"
}

# wait_for SECONDS COMMAND...: runs the command until it succeeds. Returns 1 after the timeout.
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.05
  done
}

# An HTTP request that fails on any status from 400 on. Loopback is never behind a proxy.
http() { curl --silent --fail --noproxy '*' --max-time 5 "$@"; }

# The same over a unix socket: http_unix SOCKET PATH [curl arguments].
http_unix() {
  local socket=$1 path=$2
  shift 2
  curl --silent --fail --noproxy '*' --unix-socket "$socket" "$@" "http://engine$path"
}

# Creates a directory that only this user can write to. Rejects one created by another user.
own_directory() {
  (umask 022 && mkdir -p "$1") || die "cannot make the directory $1"
  [ -O "$1" ] || die "$1 belongs to another user: set BOB_SERVICES_DIR to a directory of your own"
}
