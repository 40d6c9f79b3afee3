# shellcheck shell=bash
# The source of the services' programs: this host (suite "host"), or a Debian tree of another suite.
# The tree is created once by debootstrap, and root enters it in a separate mount namespace.

SUITE_PACKAGES='rabbitmq-server,etcd-server,podman,crun,conmon,uidmap,slirp4netns,catatonit,procps'

# Further arguments for enter.sh.
ENTER_OPTIONS=()

suite_tree() { printf '%s/%s' "${BOB_CACHE_DIR:-/var/cache/bob-runner}" "$SUITE"; }

# in_suite ARRAY NAME=VALUE...: a command prefix that runs a program of the suite as the service
# user.
in_suite() {
  local -n into=$1
  local -a as_user
  if [ "$SUITE" != host ]; then
    in_private_namespace "$@"
    return
  fi
  shift
  service_user_command as_user "$@"
  # shellcheck disable=SC2034 # the caller's array
  into=("${as_user[@]}")
}

# The same, in a mount namespace with everything rootless podman needs. Only root can create one.
in_private_namespace() {
  local -n wrapped=$1
  local -a as_service_user
  shift
  service_user_command as_service_user "$@"
  wrapped=()
  if is_root; then
    wrapped=(unshare --mount "$ROOT/scripts/lib/enter.sh" "${ENTER_OPTIONS[@]}")
    [ "$SUITE" = host ] || wrapped+=(--tree "$(suite_tree)" --share "$INSTANCE" --share "$(podman_store)")
    wrapped+=(--)
  fi
  wrapped+=("${as_service_user[@]}")
}

suite_prepare() {
  local tree lock
  [ "$SUITE" != host ] || return 0
  is_root || die "--suite $SUITE enters another Debian tree, which only root can: run it with sudo"
  tree=$(suite_tree)
  mkdir -p "$(dirname "$tree")"
  exec {lock}>>"$tree.lock"
  flock "$lock"
  [ -e "$tree/.complete" ] && [ "$(<"$tree/.complete")" = "$SUITE_PACKAGES" ] || suite_make "$tree"
  suite_add_user "$tree"
  exec {lock}>&-
}

# Created next to its place and then moved, so that an incomplete tree is never used.
suite_make() {
  local tree=$1 log=$1.log mirror
  require_program debootstrap
  # shellcheck disable=SC2016 # apt's own variables
  mirror=${BOB_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' |
    awk '$2 == "Debian" && $1 !~ /security/ { print $1; exit }')}
  [ -n "$mirror" ] || die "apt knows no Debian mirror on this machine: name one in BOB_DEBIAN_MIRROR"
  say "making a Debian $SUITE tree in $tree (once; its log: $log)"
  rm -rf "$tree" "$tree.new"
  {
    debootstrap --variant=minbase "$SUITE" "$tree.new" "$mirror" &&
      printf '#!/bin/sh\nexit 101\n' >"$tree.new/usr/sbin/policy-rc.d" &&
      chmod +x "$tree.new/usr/sbin/policy-rc.d" &&
      DEBIAN_FRONTEND=noninteractive chroot "$tree.new" \
        apt-get install --yes --no-install-recommends ${SUITE_PACKAGES//,/ } &&
      chroot "$tree.new" apt-get clean
  } >"$log" 2>&1 </dev/null || {
    tail -n 20 "$log" >&2
    die "no Debian $SUITE tree could be made from $mirror; the end of the log is above"
  }
  printf '%s' "$SUITE_PACKAGES" >"$tree.new/.complete"
  mv "$tree.new" "$tree"
}

# The test user is the same inside: same name, ids and range. Other services can be starting in the
# tree, and must find the user at any moment. So a file with the right content is not touched, and
# other files are replaced atomically.
suite_add_user() {
  local tree=$1 file new
  for file in passwd group subuid subgid; do
    new=$tree/etc/.$file.new
    {
      grep -v "^$SERVICE_USER:" "$tree/etc/$file" || true
      grep "^$SERVICE_USER:" "/etc/$file" || true
    } >"$new"
    chmod 0644 "$new"
    if cmp -s "$new" "$tree/etc/$file"; then rm "$new"; else mv "$new" "$tree/etc/$file"; fi
  done
}
