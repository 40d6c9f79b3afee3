# shellcheck shell=bash
# The base image: the host's static busybox and its links, as a tar for podman's import.

# `ENV PATH=...`, percent-encoded as the query parameter it becomes.
export BASE_IMAGE_CHANGES='ENV%20PATH%3D%2Fusr%2Flocal%2Fbin%3A%2Fusr%2Fbin%3A%2Fbin'

base_root_file_system() {
  local root applet
  root=$(mktemp -d)
  mkdir -p "$root"/{bin,dev,etc,proc,sys,usr/bin,var}
  mkdir -m 0700 "$root/root"
  mkdir -m 1777 "$root/tmp"
  # Every user of the image can read it, whatever the caller's umask.
  chmod 0755 "$root" "$root"/{bin,dev,etc,proc,sys,usr,usr/bin,var}
  install -m 0755 "$(command -v busybox)" "$root/bin/busybox"
  for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  ln -s ../../bin/env "$root/usr/bin/env"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
  chmod 0644 "$root"/etc/*
  # The same busybox gives the same bytes and so the same image id.
  tar --create --directory "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 .
  rm -rf "$root"
}
