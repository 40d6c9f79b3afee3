# shellcheck shell=bash
# Debian's docker.io: a daemon with its own socket and data, and without a network. Only root can
# start it. If it cannot start, the reason is reported and the rest continues without it.

docker_units() { [ -n "$(docker_refused)" ] || echo docker; }

docker_socket() { printf '%s' "$INSTANCE/docker/docker.sock"; }

# The reason why the daemon did not start. Empty if it did.
docker_refused() { cat "$INSTANCE/docker-refused" 2>/dev/null || true; }

docker_refuse() {
  say "docker.io's daemon does not start here: $1"
  printf '%s\n' "$1" >"$INSTANCE/docker-refused"
}

docker_configure() {
  local id
  id=$(<"$INSTANCE/store-id")
  rm -f "$INSTANCE/docker-refused"
  mkdir -p -m 0700 "$INSTANCE/docker"
  if ! is_root; then
    docker_refuse 'only root can start it'
  elif [ "$SUITE" != host ]; then
    docker_refuse "it is not part of the suite $SUITE"
  elif [ "$(filesystem_of "$INSTANCE")" = overlayfs ]; then
    docker_refuse "$INSTANCE is on an overlay, on which its own cannot stand: set BOB_SERVICES_DIR"
  else
    # The unique id in its path identifies the mounts of its containers.
    mkdir -p "$INSTANCE/data/docker/$id"
    echo '{}' >"$INSTANCE/conf/docker.json"
  fi
}

docker_start() {
  local to=$INSTANCE/docker
  [ -z "$(docker_refused)" ] && ! unit_runs docker || return 0
  rm -f "$(docker_socket)" "$to/pid"
  # Its mounts are in a namespace that ends with its last process.
  start_unit docker unshare --mount --propagation private \
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "HOME=$INSTANCE/home" \
    dockerd --host "unix://$(docker_socket)" --group root --config-file "$INSTANCE/conf/docker.json" \
    --data-root "$INSTANCE/data/docker/$(<"$INSTANCE/store-id")" --exec-root "$to/exec" \
    --pidfile "$to/pid" --bridge none --iptables=false --ip6tables=false --ip-forward=false
}

docker_await() {
  local answer
  [ -z "$(docker_refused)" ] || return 0
  if ! wait_for 60 docker_answers_or_ends || ! docker_pings; then
    answer=$(grep -v 'level=info' "$INSTANCE/logs/docker.log" | tail -n 1)
    end_unit docker KILL 10
    docker_refuse "${answer:-it does not answer; its log is $INSTANCE/logs/docker.log}"
    return 0
  fi
  docker_has_image || answer=$(base_root_file_system | docker_api \
    "/images/create?fromSrc=-&repo=${TEST_IMAGE%:*}&tag=${TEST_IMAGE##*:}&changes=$BASE_IMAGE_CHANGES" \
    --request POST --header 'Content-Type: application/x-tar' --data-binary @- --no-fail) || true
  docker_has_image ||
    die "docker could not import the base image $TEST_IMAGE: ${answer:-no answer}" \
      "its log: $INSTANCE/logs/docker.log"
  docker_runs_a_container || docker_refuse "it cannot run a container: ${DOCKER_ANSWER:-no answer}"
}

docker_answers_or_ends() { docker_pings || ! unit_runs docker; }

docker_pings() { http_unix "$(docker_socket)" /_ping --max-time 5 --output /dev/null; }

docker_api() {
  local path=$1
  shift
  http_unix "$(docker_socket)" "/v1.41$path" --max-time 60 "$@"
}

docker_has_image() { docker_api "/images/$TEST_IMAGE/json" --output /dev/null; }

# Runs a trivial container: only that shows that the host has everything needed.
docker_runs_a_container() {
  local id code
  DOCKER_ANSWER=$(docker_api /containers/create --no-fail --header 'Content-Type: application/json' \
    --data "{\"Image\":\"$TEST_IMAGE\",\"Cmd\":[\"true\"],\"HostConfig\":{\"NetworkMode\":\"none\"}}") || true
  id=$(sed -n 's/.*"Id":"\([0-9a-f]*\)".*/\1/p' <<<"$DOCKER_ANSWER")
  [ -n "$id" ] || return 1
  DOCKER_ANSWER=$(docker_api "/containers/$id/start" --no-fail --request POST) || true
  code=$(docker_api "/containers/$id/wait" --request POST) || code=
  docker_api "/containers/$id?force=true&v=true" --request DELETE --output /dev/null || true
  [[ $code == *'"StatusCode":0'* ]]
}

docker_env() {
  [ -n "$(docker_refused)" ] || printf '%s\n' "BOB_TEST_DOCKER_URL=unix://$(docker_socket)"
}
