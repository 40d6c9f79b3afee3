#!/usr/bin/env bash
# Run by root as `unshare --mount enter.sh [--disk DIRECTORY OPTIONS]
# [--tree DIRECTORY [--share DIRECTORY]...] -- COMMAND...`: gives the command what rootless podman
# needs and the host may lack, in this private mount namespace. Nothing of it is seen outside, and it
# ends with the last process in it.
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

# crun knows pure cgroup v2 and refuses a mix of both versions.
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
  umount --recursive --lazy /sys/fs/cgroup 2>/dev/null || true
  mount -t cgroup2 none /sys/fs/cgroup
fi

# podman keeps its locks in shared memory, one set for each user: ours are not to meet another's.
mount -t tmpfs -o mode=1777 tmpfs /dev/shm

# slirp4netns opens this device as the ordinary user; some hosts keep it for root.
if [ -e /dev/net/tun ] && [ "$(stat -c %a /dev/net/tun)" != 666 ]; then
  mount -t tmpfs -o mode=0755 tmpfs /dev/net
  mknod -m 666 /dev/net/tun c 10 200
fi

# A small one, that can be filled.
[ -z "$disk" ] || mount -t tmpfs -o "$disk_options" tmpfs "$disk"

if [ -n "$tree" ]; then
  # A chroot forbids user namespaces, a new root does not.
  mount --bind "$tree" "$tree"
  # Places to mount on are made here rather than in the tree that all share.
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
