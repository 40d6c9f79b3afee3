#!/usr/bin/env bash
# Run by root: apt-install.sh "UNIT..." PACKAGE... Installs packages, and keeps the servers that
# come new with them from being started, now or at the next boot. A server that the machine had
# before is treated as apt always treats it.
set -euo pipefail

units=$1
shift

unit_files() {
  local directory suffix
  for directory in /lib/systemd/system /usr/lib/systemd/system /etc/systemd/system; do
    for suffix in service socket timer; do
      [ ! -e "$directory/$1.$suffix" ] || echo "$1.$suffix"
    done
  done
  [ ! -e "/etc/init.d/$1" ] || echo "$1"
}

fresh=()
for unit in $units; do
  [ -n "$(unit_files "$unit")" ] || fresh+=("$unit")
done

# Debian asks this file before it starts anything. One that is there already is still asked, and
# ours says nothing any more once this process is gone, however it ended.
policy=/usr/sbin/policy-rc.d
saved=
restore() {
  rm -f "$policy"
  [ -z "$saved" ] || mv "$saved" "$policy"
}
trap restore EXIT
if [ -e "$policy" ] || [ -L "$policy" ]; then
  saved=$policy.before-bob-runner
  mv "$policy" "$saved"
fi
pattern=$(IFS='|'; echo "${fresh[*]:-none}")
cat >"$policy" <<POLICY
#!/bin/sh
# Of bob-runner's scripts/setup, while its process $$ lives.
unit=\${1%.service} unit=\${unit%.socket} unit=\${unit%.timer}
if [ -d /proc/$$ ]; then
  case "\$unit" in $pattern) exit 101 ;; esac
fi
[ ! -x "${saved:-/nonexistent}" ] || exec "${saved:-/nonexistent}" "\$@"
exit 0
POLICY
chmod 0755 "$policy"

export DEBIAN_FRONTEND=noninteractive
options=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
apt-get "${options[@]}" update --quiet || echo 'apt-get update had faults: going on with the lists there are' >&2
apt-get "${options[@]}" install --quiet --yes --no-install-recommends "$@" </dev/null

for unit in "${fresh[@]}"; do
  for file in $(unit_files "$unit"); do
    systemctl disable --quiet "$file" 2>/dev/null || update-rc.d "${file%.*}" disable 2>/dev/null || true
  done
done
