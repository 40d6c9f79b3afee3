#!/usr/bin/env bash
# Run by root as
#   unshare --mount enter.sh [--disk DIRECTORY OPTIONS] [--tree DIRECTORY [--share DIRECTORY]...] \
#     -- COMMAND...
# Gives the command what rootless podman needs and the host might lack, in this private mount
# namespace. It is invisible outside and ends with the last process in it.
set -euo pipefail

tree='' disk='' disk_options=''
shares=()
while [ "$1" != -- ]; do
  case $1 in
    --disk) disk=$2 disk_options=$3; shift ;;
    --tree) tree=$2 ;;
    --share) shares+=("$2") ;;
    *) echo "enter.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
shift

mount --make-rprivate /

# crun supports pure cgroup v2 and rejects a mix of both versions.
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
  umount --recursive --lazy /sys/fs/cgroup 2>/dev/null || true
  mount -t cgroup2 none /sys/fs/cgroup
fi

# podman keeps one set of locks per user in shared memory. Ours must not meet another's.
mount -t tmpfs -o mode=1777 tmpfs /dev/shm

# slirp4netns opens this device as an ordinary user, but some hosts reserve it for root.
if [ -e /dev/net/tun ] && [ "$(stat -c %a /dev/net/tun)" != 666 ]; then
  mount -t tmpfs -o mode=0755 tmpfs /dev/net
  mknod -m 666 /dev/net/tun c 10 200
fi

# A small disk that can be filled.
[ -z "$disk" ] || mount -t tmpfs -o "$disk_options" tmpfs "$disk"

if [ -n "$tree" ]; then
  # User namespaces cannot be created in a chroot, but they can with a new root.
  mount --bind "$tree" "$tree"
  # Create mount points here instead of in the shared tree.
  mount -t tmpfs -o mode=1777 tmpfs "$tree/tmp"
  for directory in /proc /sys /dev "${shares[@]}"; do
    mkdir -p "$tree$directory"
    mount --rbind "$directory" "$tree$directory"
  done
  mkdir -p "$tree/.host"
  cd "$tree"
  pivot_root . .host
  cd /
  umount --lazy /.host
fi

exec "$@"
