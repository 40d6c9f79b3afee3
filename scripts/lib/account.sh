# shellcheck shell=bash
# The user that runs the services: the caller, or a test user if the caller is root. So podman is
# always rootless, and RabbitMQ and etcd never run as root.

SERVICE_USER=
SERVICE_UID=
SERVICE_GID=

# Sets SERVICE_USER, SERVICE_UID and SERVICE_GID. For root, creates the test user if needed.
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

# Two concurrent calls must not both create the user.
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

# Rootless podman maps the users of a container to the user's own range of ids.
give_id_range() {
  local user=$1 file=$2 option=$3 first
  touch "$file"
  ! grep -q "^$user:" "$file" || return 0
  first=$(awk -F: 'BEGIN { next_id = 100000 } $2 + $3 > next_id { next_id = $2 + $3 } END { print next_id }' "$file")
  usermod "$option" "$first-$((first + 65535))" "$user" >&2 ||
    die "cannot give $user a range of ids in $file: add the line \"$user:$first:65536\" to it"
}

# An ordinary user cannot allocate a range. Explain who can, and how.
require_id_range() {
  local file
  for file in /etc/subuid /etc/subgid; do
    grep -q -e "^$SERVICE_USER:" -e "^$SERVICE_UID:" "$file" 2>/dev/null ||
      die "$SERVICE_USER has no range of ids in $file, which rootless podman needs" \
        "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $SERVICE_USER" \
        "(with a range that no other line of $file has)"
  done
}

# Sets the array named by $1 to a command prefix that runs a program as the service user. The home
# directory is the instance's, and the environment has only the further arguments (NAME=value).
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

# Creates directories of the service user that only it and root can access.
service_directory() {
  local directory
  for directory in "$@"; do
    mkdir -p "$directory"
    chmod 0700 "$directory"
    is_root && chown "$SERVICE_UID:$SERVICE_GID" "$directory"
  done
  return 0
}
