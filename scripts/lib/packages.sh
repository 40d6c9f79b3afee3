# shellcheck shell=bash
# The Debian packages that the scripts need. Their installation does not start a newly installed
# server, neither now nor at boot.

# The packages of each program.
declare -A PACKAGE_OF=(
  [rabbitmq-server]=rabbitmq-server [etcd]=etcd-server [podman]=podman [crun]=crun
  [newuidmap]=uidmap [slirp4netns]=slirp4netns [catatonit]=catatonit [busybox]=busybox-static
  [docker-registry]=docker-registry [debootstrap]=debootstrap [curl]=curl [openssl]=openssl
  [protoc]='protobuf-compiler libprotobuf-dev' [cc]='gcc libc6-dev' [setpriv]=util-linux
  [ssh]=openssh-client [sshd]=openssh-server [dockerd]=docker.io
)

# The units of these packages that would start at each boot.
SERVER_UNITS='rabbitmq-server etcd docker-registry epmd podman podman-auto-update podman-restart podman-clean-transient docker containerd ssh'

program_is_there() {
  case $1 in
    # Not in every user's PATH, and not needed there.
    etcd | rabbitmq-server | docker-registry | debootstrap | catatonit | sshd | dockerd)
      PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec/podman command -v "$1" >/dev/null ;;
    # A busybox that is not static cannot be a whole image.
    busybox) have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1 ;;
    *) have "$1" ;;
  esac
}

require_program() { install_programs "$1"; }

# install_programs PROGRAM...: installs the packages of missing programs, as root or with sudo. If
# neither is possible, or the system is not Debian, reports what is missing and exits.
install_programs() {
  local program
  local -A missing=()
  for program in "$@"; do
    program_is_there "$program" || missing[${PACKAGE_OF[$program]}]=$program
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  have apt-get || die "these programs are missing: ${missing[*]}" \
    "this script installs Debian packages only; by Debian's names they are: ${!missing[*]}"
  # shellcheck disable=SC2046,SC2086 # one word for each package
  install_packages $(printf '%s\n' ${!missing[*]} | sort -u)
  hash -r
}

install_packages() {
  local log
  local -a sudo=()
  if ! is_root; then
    have sudo || die "these Debian packages are missing: $*" \
      "as root: apt-get install --no-install-recommends $*"
    sudo=(sudo)
    # Without a terminal sudo cannot ask for a password.
    [ -t 0 ] || sudo+=(-n)
  fi
  say "installing Debian packages: $*"
  log=$(mktemp)
  if ! ${sudo[@]+"${sudo[@]}"} bash "$ROOT/scripts/lib/apt-install.sh" "$SERVER_UNITS" "$@" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    die "the packages could not be installed; the end of apt's output is above, and all of it in $log" \
      "try it by hand: apt-get update && apt-get install --no-install-recommends $*"
  fi
  rm -f "$log"
}
