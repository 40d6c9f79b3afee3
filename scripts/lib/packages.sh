# shellcheck shell=bash
# The Debian packages that the scripts need, and how they are installed: without starting, now or
# at the next boot, a server that the user did not have.

# program:package, for each thing that can be asked of a machine.
declare -A PACKAGE_OF=(
  [rabbitmq-server]=rabbitmq-server [etcd]=etcd-server [podman]=podman [crun]=crun
  [newuidmap]=uidmap [slirp4netns]=slirp4netns [catatonit]=catatonit [busybox]=busybox-static
  [docker-registry]=docker-registry [debootstrap]=debootstrap [curl]=curl [openssl]=openssl
  [protoc]=protobuf-compiler [cc]=gcc [make]=make [git]=git
  [ip]=iproute2 [setpriv]=util-linux [flock]=util-linux
)

# What a package would start by itself.
SERVER_UNITS='rabbitmq-server etcd docker-registry epmd podman podman-auto-update podman-restart podman-clean-transient'

program_is_there() {
  case $1 in
    # Not on every user's path, and of no use there.
    etcd | rabbitmq-server | docker-registry | debootstrap | catatonit)
      PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec/podman command -v "$1" >/dev/null ;;
    # Another busybox than the static one cannot be a whole image.
    busybox) have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1 ;;
    *) have "$1" ;;
  esac
}

require_program() { install_programs "$1"; }

# install_programs PROGRAM...: installs the packages of those that are missing, as root or with
# sudo; where neither can be, or the system is no Debian, says what is missing and ends.
install_programs() {
  local program
  local -A missing=()
  for program in "$@"; do
    program_is_there "$program" || missing[${PACKAGE_OF[$program]}]=$program
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  have apt-get || die "these programs are missing: ${missing[*]}" \
    "this script installs Debian packages only; by Debian's names they are: ${!missing[*]}"
  install_packages "${!missing[@]}"
  hash -r
}

install_packages() {
  local -a sudo=()
  if ! is_root; then
    have sudo || die "these Debian packages are missing: $*" \
      "as root: apt-get install --no-install-recommends $*"
    sudo=(sudo)
    # Without a terminal sudo cannot ask for a password.
    [ -t 0 ] || sudo+=(-n)
  fi
  say "installing Debian packages: $*"
  "${sudo[@]}" bash -s -- "$SERVER_UNITS" "$@" <"$ROOT/scripts/lib/apt-install.sh" >&2 ||
    die "the packages could not be installed: $*" \
      "try it by hand: apt-get update && apt-get install --no-install-recommends $*"
}
