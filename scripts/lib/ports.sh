# shellcheck shell=bash
# Loopback ports of an instance: chosen once, stored in its directory, unique among all instances.

# The ports now in use on this host, or assigned to an instance, running or not.
ports_taken() {
  local entry
  cat "$SERVICES_DIR"/*/ports 2>/dev/null | cut -d= -f2 || true
  while read -r _ entry _; do
    entry=${entry##*:}
    [[ $entry =~ ^[0-9A-F]{4}$ ]] && printf '%d\n' "0x$entry"
  done < <(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null)
}

# choose_ports NAME...: adds NAME=port lines to the instance, below the kernel's ephemeral range.
# The caller must hold the lock of the services directory.
choose_ports() {
  local -A taken=()
  local port name
  while read -r port; do taken[$port]=1; done < <(ports_taken)
  port=$((20000 + (RANDOM * 32768 + RANDOM) % 10000))
  for name in "$@"; do
    while [ -n "${taken[$port]:-}" ]; do port=$(next_port "$port"); done
    printf '%s=%s\n' "$name" "$port"
    taken[$port]=1
  done >"$INSTANCE/ports.new"
  mv "$INSTANCE/ports.new" "$INSTANCE/ports"
}

next_port() { if [ "$1" -ge 31999 ]; then echo 20000; else echo $(($1 + 1)); fi; }

port_of() {
  local port
  port=$(sed -n "s/^$1=//p" "$INSTANCE/ports")
  # shellcheck disable=SC2153 # NAME is the instance's
  [ -n "$port" ] || die "the services \"$NAME\" have no port for $1: run scripts/services down --name $NAME first"
  printf '%s' "$port"
}

port_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
