# shellcheck shell=bash
# Units: background processes of an instance, each with a file of its pid and start time. The start
# time distinguishes it from a later process with the same pid.

# The start time of a live process, in ticks since boot. Empty for a dead one or a zombie.
started_at() {
  local stat
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  # The name can contain blanks and parentheses, so count after it, from field 3 to field 22.
  read -ra stat <<<"${stat##*) }"
  [ "${stat[0]}" = Z ] || printf '%s' "${stat[19]}"
}

unit_pid() {
  local pid='' at=''
  [ ! -e "$INSTANCE/pids/$1" ] || read -r pid at <"$INSTANCE/pids/$1" || true
  [ -z "$pid" ] || [ "$(started_at "$pid")" != "$at" ] || printf '%s' "$pid"
}

unit_runs() { [ -n "$(unit_pid "$1")" ]; }

# start_unit UNIT COMMAND...: starts a unit in its own session, with its output in the unit's log.
# Closes our open files, because the unit would keep a lock or a pipe of the caller open.
start_unit() {
  local unit=$1 pid
  shift
  (
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      [ "$fd" -le 2 ] || [ "$fd" -eq 255 ] || eval "exec $fd>&-"
    done
    cd / && exec setsid "$@"
  ) </dev/null >>"$INSTANCE/logs/$unit.log" 2>&1 &
  pid=$!
  disown "$pid"
  printf '%s %s\n' "$pid" "$(started_at "$pid")" >"$INSTANCE/pids/$unit"
}

# The processes of a unit. podman's service is often the child of a process of the same program that
# only forwards SIGTERM. It would survive a SIGKILL of its parent. Other children, such as a
# container's network helper, are left out.
unit_pids() {
  local pid child
  pid=$(unit_pid "$1")
  [ -n "$pid" ] || return 0
  # shellcheck disable=SC2013 # words are what is wanted
  for child in $(cat "/proc/$pid/task"/*/children 2>/dev/null); do
    [ "/proc/$pid/exe" -ef "/proc/$child/exe" ] && echo "$child"
  done
  echo "$pid"
}

# any_lives PID START...: whether any of these processes is alive.
any_lives() {
  while [ $# -gt 0 ]; do
    [ "$(started_at "$1")" != "$2" ] || return 0
    shift 2
  done
  return 1
}

none_lives() { ! any_lives "$@"; }

# end_unit UNIT SIGNAL SECONDS: sends the signal, and SIGKILL after the timeout.
end_unit() {
  local unit=$1 signal=$2 seconds=$3 pid
  local -a pids processes=()
  read -ra pids <<<"$(unit_pids "$unit" | tr '\n' ' ')"
  if [ ${#pids[@]} -gt 0 ]; then
    for pid in "${pids[@]}"; do processes+=("$pid" "$(started_at "$pid")"); done
    if [ "$signal" = KILL ]; then
      kill -KILL "${pids[@]}" 2>/dev/null || true
    else
      # The last one is the unit itself. A process stopped by SIGSTOP handles signals only after
      # SIGCONT.
      kill "-$signal" "${pids[-1]}" 2>/dev/null || true
      kill -CONT "${pids[@]}" 2>/dev/null || true
    fi
    if ! wait_for "$seconds" none_lives "${processes[@]}"; then
      say "$unit did not end within $seconds s: killing it"
      kill -KILL "${pids[@]}" 2>/dev/null || true
      wait_for 10 none_lives "${processes[@]}" || die "$unit (${pids[*]}) survives SIGKILL"
    fi
  fi
  rm -f "$INSTANCE/pids/$unit"
}

signal_unit() {
  local -a pids
  read -ra pids <<<"$(unit_pids "$1" | tr '\n' ' ')"
  [ ${#pids[@]} -gt 0 ] || die "$1 of the services \"$NAME\" does not run"
  kill "-$2" "${pids[@]}"
}

# Waits until a started unit answers. Shows the end of its log if it does not.
await_unit() {
  local unit=$1 end=$((SECONDS + ${BOB_SERVICES_DEADLINE:-180}))
  shift
  until "$@"; do
    unit_runs "$unit" || unit_failed "$unit" 'ended while it was starting'
    [ "$SECONDS" -lt "$end" ] ||
      unit_failed "$unit" "does not answer after ${BOB_SERVICES_DEADLINE:-180} s (BOB_SERVICES_DEADLINE)"
    sleep 0.05
  done
}

unit_failed() {
  say "--- the end of $INSTANCE/logs/$1.log"
  tail -n 30 "$INSTANCE/logs/$1.log" >&2 || true
  say '---'
  die "$1 of the services \"$NAME\" $2; the end of its log is above"
}

# The pids of all processes of the instance. Units and podman's helpers (the pause process, conmon,
# network helpers) are found by their home, which is unique. A container's processes are found by
# the unique id of the store in their mounts.
instance_processes() {
  {
    grep -lzxF "HOME=$INSTANCE/home" /proc/[0-9]*/environ
    grep -lF "$(<"$INSTANCE/store-id")" /proc/[0-9]*/mountinfo
  } 2>/dev/null | cut -d/ -f3 | sort -un
}

no_instance_process() {
  local -a pids
  read -ra pids <<<"$(instance_processes | tr '\n' ' ')"
  [ ${#pids[@]} -gt 0 ] || return 0
  kill -KILL "${pids[@]}" 2>/dev/null || true
  return 1
}
