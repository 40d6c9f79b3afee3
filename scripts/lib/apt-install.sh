#!/usr/bin/env bash
# Run by root: apt-install.sh "UNIT..." PACKAGE... Installs packages without starting any newly
# installed server now. The UNITs are also kept from starting at boot. Servers that were already
# installed are treated as apt always does.
set -euo pipefail

boot_units=$1
shift

# Names of all units and init scripts.
known_units() {
  find /lib/systemd/system /usr/lib/systemd/system /etc/systemd/system /etc/init.d -maxdepth 1 \
    ! -type d -printf '%f\n' 2>/dev/null | sort -u || true
}

work=$(mktemp -d)
chmod 0755 "$work"
known_units >"$work/known"

# Debian runs this file before it starts a service. An existing one is still consulted. Ours allows
# everything once this process is gone, however it ended.
policy=/usr/sbin/policy-rc.d
saved=
restore() {
  rm -f "$policy"
  [ -z "$saved" ] || mv "$saved" "$policy"
  rm -rf "$work"
}
trap restore EXIT
if [ -e "$policy" ] || [ -L "$policy" ]; then
  saved=$policy.before-bob-runner
  mv "$policy" "$saved"
fi
cat >"$policy" <<POLICY
#!/bin/sh
# Of bob-runner's scripts/setup, for as long as it installs packages.
unit=\${1%.service}
if [ -e "$work/known" ] && ! grep -q -x -e "\$unit" -e "\$unit.service" "$work/known"; then
  exit 101
fi
[ ! -x "${saved:-/nonexistent}" ] || exec "${saved:-/nonexistent}" "\$@"
exit 0
POLICY
chmod 0755 "$policy"

export DEBIAN_FRONTEND=noninteractive
options=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0)
apt-get "${options[@]}" update || echo 'apt-get update failed: continuing with the existing package lists' >&2
apt-get "${options[@]}" install --yes --no-install-recommends "$@" </dev/null

for unit in $boot_units; do
  for file in $(known_units | grep -x -e "$unit" -e "$unit\.\(service\|socket\|timer\)"); do
    ! grep -q -x "$file" "$work/known" || continue
    ! command -v systemctl >/dev/null || systemctl disable --quiet "$file" || true
    [ ! -e "/etc/init.d/$file" ] || update-rc.d "$file" disable || true
  done
done
