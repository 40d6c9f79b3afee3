# shellcheck shell=bash
# Who the services run as: the user who calls, or, where that is root, an ordinary test user.
# podman is therefore always rootless, and RabbitMQ and etcd never run as root.

SERVICE_USER=
SERVICE_UID=
SERVICE_GID=

# Sets SERVICE_USER, SERVICE_UID and SERVICE_GID; root gets the test user, made if it is missing.
find_service_user() {
  if is_root; then
    SERVICE_USER=${BOB_TEST_USER:-bob-test}
    make_test_user "$SERVICE_USER"
  else
    SERVICE_USER=$(id -un)
  fi
  SERVICE_UID=$(id -u "$SERVICE_USER")
  SERVICE_GID=$(id -g "$SERVICE_USER")
}

# Two calls at once must not both make the user, hence the lock.
make_test_user() {
  local user=$1 lock
  exec {lock}>>"/run/lock/bob-runner-user.lock"
  flock "$lock"
  if ! id "$user" >/dev/null 2>&1; then
    useradd --create-home --shell /bin/bash --comment 'bob-runner tests' "$user" >&2 ||
      die "cannot make the user $user: make it by hand, or name another with BOB_TEST_USER"
  fi
  [ "$(id -u "$user")" -ne 0 ] || die "BOB_TEST_USER is root: name an ordinary user"
  give_id_range "$user" /etc/subuid --add-subuids
  give_id_range "$user" /etc/subgid --add-subgids
  exec {lock}>&-
}

# Rootless podman maps the users of a container to a range of ids that is the user's own.
give_id_range() {
  local user=$1 file=$2 option=$3 first
  touch "$file"
  ! grep -q "^$user:" "$file" || return 0
  first=$(awk -F: 'BEGIN { next_id = 100000 } $2 + $3 > next_id { next_id = $2 + $3 } END { print next_id }' "$file")
  usermod "$option" "$first-$((first + 65535))" "$user" >&2 ||
    die "cannot give $user a range of ids in $file: add the line \"$user:$first:65536\" to it"
}

# An ordinary user cannot give themselves a range: say who can, and how.
require_id_range() {
  local file
  for file in /etc/subuid /etc/subgid; do
    grep -q -e "^$SERVICE_USER:" -e "^$SERVICE_UID:" "$file" 2>/dev/null ||
      die "$SERVICE_USER has no range of ids in $file, which rootless podman needs" \
        "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $SERVICE_USER" \
        "(with a range that no other line of $file has)"
  done
}

# Puts into the array named by $1 what starts a program as the service user, in a home that is the
# instance's, with only the environment given in the further arguments (NAME=value): nothing of the
# caller's leaks in.
service_user_command() {
  local -n command_ref=$1
  shift
  command_ref=()
  if is_root; then
    command_ref=(setpriv "--reuid=$SERVICE_UID" "--regid=$SERVICE_GID" --init-groups --)
  fi
  command_ref+=(
    env -i
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    LANG=C.UTF-8 "HOME=$INSTANCE/home" "USER=$SERVICE_USER" "LOGNAME=$SERVICE_USER" "$@"
  )
}

as_service_user() {
  local -a command
  service_user_command command
  "${command[@]}" "$@"
}

# Makes directories of the service user, closed to all others but root.
service_directory() {
  local directory
  for directory in "$@"; do
    mkdir -p "$directory"
    chmod 0700 "$directory"
    is_root && chown "$SERVICE_UID:$SERVICE_GID" "$directory"
  done
  return 0
}
