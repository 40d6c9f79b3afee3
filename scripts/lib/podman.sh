# shellcheck shell=bash
# podman: a rootless service with its own socket, store, runtime directory and pause process,
# separate from every other podman on this host.

TEST_IMAGE=localhost/bob-test-base:latest

podman_units() { echo podman; }

podman_socket() { printf '%s' "$INSTANCE/run/podman.sock"; }

# The store needs a file system that supports rootless overlay. The unique id in its path identifies
# the mounts of its containers.
podman_store() {
  local id
  id=$(<"$INSTANCE/store-id")
  case $(filesystem_of "$INSTANCE") in
    overlayfs | tmpfs | ramfs)
      printf '%s' "$(getent passwd "$SERVICE_UID" | cut -d: -f6)/.local/share/bob-services/$id" ;;
    *) printf '%s' "$INSTANCE/data/podman/$id" ;;
  esac
}

podman_configure() {
  local to=$INSTANCE/conf/podman run=$INSTANCE/run/store store driver=overlay
  require_id_range
  # With a longer run directory, podman's cleanup after a container fails: the container stays
  # "stopped", and `podman run` waits for 20 s.
  [ "${#run}" -le 50 ] ||
    die "$run is longer than the 50 characters that podman can work with" \
      'set BOB_SERVICES_DIR to a shorter path, or take a shorter --name'
  store=$(podman_store)
  [ -n "$DISK" ] || [ "$(filesystem_of "$(dirname "$store")")" != overlayfs ] || driver=vfs
  mkdir -p "$to"
  service_directory "$INSTANCE/data/podman" "$INSTANCE/home" "$INSTANCE/run" "$INSTANCE/run/tmp" \
    "$INSTANCE/home/.config" "$INSTANCE/home/.config/containers"
  as_service_user mkdir -p "$store" ||
    die "$SERVICE_USER cannot write to $store: set BOB_SERVICES_DIR to a directory that all can enter"
  # podman has no variable for the first file and ignores the one for the second, but finds both in
  # its home.
  echo '{ "default": [ { "type": "insecureAcceptAnything" } ] }' \
    >"$INSTANCE/home/.config/containers/policy.json"
  printf 'unqualified-search-registries = []\n' >"$to/registries.conf"
  printf '[storage]\ndriver = "%s"\ngraphroot = "%s/graph"\nrunroot = "%s"\n' \
    "$driver" "$store" "$run" >"$INSTANCE/home/.config/containers/storage.conf"
  [ -e "$to/containers.conf" ] || podman_containers_conf "$(podman_cgroups)" >"$to/containers.conf"
}

# systemd if the caller has a session that can delegate, else no cgroups.
podman_cgroups() {
  if ! is_root && [ -S "/run/user/$SERVICE_UID/bus" ]; then echo systemd; else echo disabled; fi
}

podman_containers_conf() {
  # Locks in shared memory are per user. Root has a mount namespace for each instance, but an
  # ordinary user would share them with their other stores.
  local lock_type=file
  is_root && lock_type=shm
  printf '[containers]\nlog_driver = "k8s-file"\n'
  [ "$1" != disabled ] || printf 'cgroups = "disabled"\n'
  printf '[engine]\nruntime = "crun"\nevents_logger = "file"\nlock_type = "%s"\n' "$lock_type"
  [ "$1" != disabled ] || printf 'cgroup_manager = "cgroupfs"\n'
  [ "$SUITE" = host ] || printf '[network]\ndefault_rootless_network_cmd = "slirp4netns"\n'
}

podman_start() {
  local -a as
  local conf=$INSTANCE/conf/podman
  local -a environment=(
    "XDG_RUNTIME_DIR=$INSTANCE/run" "TMPDIR=$INSTANCE/run/tmp"
    "CONTAINERS_CONF=$conf/containers.conf"
    "CONTAINERS_REGISTRIES_CONF=$conf/registries.conf"
  )
  ! unit_runs podman || return 0
  is_root || [ ! -S "/run/user/$SERVICE_UID/bus" ] ||
    environment+=("DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$SERVICE_UID/bus")
  local -a ENTER_OPTIONS=()
  # shellcheck disable=SC2034 # for in_private_namespace
  [ -z "$DISK" ] ||
    ENTER_OPTIONS=(--disk "$(podman_store)" "size=$DISK,mode=0700,uid=$SERVICE_UID,gid=$SERVICE_GID")
  in_private_namespace as "${environment[@]}"
  rm -f "$(podman_socket)"
  start_unit podman "${as[@]}" podman system service --time 0 "unix://$(podman_socket)"
}

podman_await() {
  await_unit podman podman_pings
  podman_has_image || make_base_image "$TEST_IMAGE"
  [ ! -e "$INSTANCE/podman-tried" ] || return 0
  if ! podman_runs_a_container && ! grep -q '^cgroups' "$INSTANCE/conf/podman/containers.conf"; then
    say "podman cannot run a container in $SERVICE_USER's systemd session: continuing without cgroups"
    podman_containers_conf disabled >"$INSTANCE/conf/podman/containers.conf"
    end_unit podman TERM 10
    podman_start
    await_unit podman podman_pings
    podman_runs_a_container || true
  fi
  [ -e "$INSTANCE/podman-tried" ] || podman_failed
}

podman_pings() { http_unix "$(podman_socket)" /_ping --max-time 5 --output /dev/null; }

podman_api() {
  local path=$1
  shift
  http_unix "$(podman_socket)" "/v4.0.0/libpod$path" --max-time 60 "$@"
}

podman_has_image() { podman_api "/images/$TEST_IMAGE/exists" --output /dev/null; }

# Imports the base image under a name. It has only busybox, so no registry is needed.
make_base_image() {
  local answer
  require_program busybox
  answer=$(base_root_file_system | podman_api "/images/import?reference=$1&changes=$BASE_IMAGE_CHANGES" \
    --request POST --header 'Content-Type: application/x-tar' --data-binary @- --no-fail --show-error) || true
  podman_api "/images/$1/exists" --output /dev/null ||
    die "podman could not import the base image $1: ${answer:-no answer}" "its log: $INSTANCE/logs/podman.log"
}

# Runs a trivial container: only that shows that the host has everything podman needs.
podman_runs_a_container() {
  local answer id code
  PODMAN_ANSWER=
  answer=$(podman_api /containers/create --no-fail --header 'Content-Type: application/json' --data \
    "{\"image\":\"$TEST_IMAGE\",\"command\":[\"true\"],\"netns\":{\"nsmode\":\"none\"}}") || true
  id=$(sed -n 's/.*"Id":"\([0-9a-f]*\)".*/\1/p' <<<"$answer")
  PODMAN_ANSWER=$answer
  [ -n "$id" ] || return 1
  PODMAN_ANSWER=$(podman_api "/containers/$id/start" --no-fail --request POST) || true
  code=$(podman_api "/containers/$id/wait?condition=exited&condition=stopped&interval=10ms" --request POST) || code=
  [ "$code" = 0 ] && [ -z "$PODMAN_ANSWER" ] && touch "$INSTANCE/podman-tried"
  podman_api "/containers/$id?force=true&timeout=0" --request DELETE --output /dev/null || true
  [ -e "$INSTANCE/podman-tried" ]
}

podman_failed() {
  tail -n 20 "$INSTANCE/logs/podman.log" >&2
  if ! is_root && [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    die "podman cannot run a container: ${PODMAN_ANSWER:-no answer}" \
      'this host mixes cgroup versions, which crun refuses: run this as root, which can hide that' \
      'from podman, or boot the host with systemd.unified_cgroup_hierarchy=1'
  fi
  die "podman cannot run a container: ${PODMAN_ANSWER:-no answer}" "its log: $INSTANCE/logs/podman.log"
}

podman_env() {
  printf '%s\n' "CONTAINER_ENGINE_URL=unix://$(podman_socket)" "BOB_TEST_IMAGE=$TEST_IMAGE"
}

# Files of the store belong to ids of the user's range. Root can remove them; the user can only do
# so in a namespace with that range.
podman_remove_store() {
  local store
  store=$(podman_store)
  local -a remove=(rm -rf "$store" "$INSTANCE/run/store")
  if is_root; then "${remove[@]}"; else unshare --map-root-user --map-auto "${remove[@]}"; fi
}
