# shellcheck shell=bash
# The test helpers named in the CI runner's document, for use with bob-runner.
#
#   . deploy/ci/lib.sh
#   testJobQueue "make test" "make test"
#
# Each returns 0 if the expectation holds. BOB_RUNNER names the program (default: bob-runner in
# PATH). With BOB_MODE=cluster the jobs go to the cluster that the environment names (BOB_QUEUE_URL
# and so on). The tests start their own workers there, and no other worker should take jobs
# meanwhile.

BOB_RUNNER=${BOB_RUNNER:-bob-runner}

# ci_in_cluster: whether jobs go to a cluster.
ci_in_cluster() {
  [[ ${BOB_MODE:-embedded} == cluster ]]
}

# ci_begin: creates a directory for one test.
ci_begin() {
  CI_DIR=$(mktemp -d) && : >"$CI_DIR/log"
}

# ci_add ARG...: adds a job and prints its run id.
ci_add() {
  if ci_in_cluster; then
    "$BOB_RUNNER" add "$@"
  else
    "$BOB_RUNNER" add --queue "$CI_DIR/queue" "$@"
  fi
}

# ci_serve NAME=VALUE...: starts a server with these settings.
ci_serve() {
  env "BOB_MODE=${BOB_MODE:-embedded}" BOB_EXECUTORS=local BOB_LOG_FORMAT=ci BOB_LOG_LEVEL=info \
    "BOB_CI_QUEUE=$CI_DIR/queue" "BOB_DATA_DIR=$CI_DIR/state" "$@" \
    "$BOB_RUNNER" serve >>"$CI_DIR/log" 2>"$CI_DIR/err" &
  CI_SERVER=$!
}

# ci_wait PATTERN: waits until a line of the server's log matches a regular expression.
ci_wait() {
  until grep -Eq "$1" "$CI_DIR/log"; do
    if ! kill -0 "$CI_SERVER" 2>/dev/null; then
      cat "$CI_DIR/log" "$CI_DIR/err" >&2
      return 1
    fi
    sleep 0.1
  done
}

# ci_first RUN: prints the first job as a line of a queue file. In a cluster this works only after a
# worker has taken the job.
ci_first() {
  local line
  if ! ci_in_cluster; then
    line=$("$BOB_RUNNER" add --queue "$CI_DIR/queue" --list) || return
    printf '%s' "${line%%$'\n'*}"
    return
  fi
  line=$("$BOB_RUNNER" show -o json "$1" | grep -A 1 '"script": \[' | tail -n 1)
  [[ $line =~ ^\ *\"(.*)\",?$ ]] || return
  line=${BASH_REMATCH[1]}
  if [[ $line == *\\n* ]]; then
    printf '{"command":"%s"}' "$line"
  else
    printf '%b' "${line//\\\"/\"}"
  fi
}

# ci_end: ends everything started by ci_begin and ci_serve.
ci_end() {
  local status=0
  if [[ -n ${CI_SERVER:-} ]]; then
    kill "$CI_SERVER" 2>/dev/null
    wait "$CI_SERVER" || status=$?
  fi
  CI_SERVER=
  rm -rf "$CI_DIR"
  return "$status"
}

# testJobQueue JOB EXPECTED: an added job reads back as the first line of the queue.
testJobQueue() {
  local run result=1
  ci_begin
  if run=$(ci_add -- "$1"); then
    ! ci_in_cluster || { ci_serve && ci_wait "run $run (passed|failed)"; }
    [[ $(ci_first "$run") != "$2" ]] || result=0
  fi
  ci_end || result=1
  return "$result"
}

# testLogging LEVEL MESSAGE EXPECTED: runs a job that fails twice on a server with log level LEVEL.
# The log line with MESSAGE, without its time, must match the pattern EXPECTED. An empty EXPECTED
# means that there must be no such line.
testLogging() {
  local line result=1
  ci_begin
  ci_add --attempts 2 --delay 10ms -- "exit 3" >/dev/null
  ci_serve "BOB_LOG_LEVEL=$1"
  if ci_wait '\[ERROR\]'; then
    line=$(grep -F -- "$2" "$CI_DIR/log" | head -n 1)
    if [[ -z $3 ]]; then
      [[ -n $line ]] || result=0
    elif [[ $line =~ ^\[[0-9]{4}-[0-9]{2}-[0-9]{2}\ [0-9]{2}:[0-9]{2}:[0-9]{2}\]\ (.*)$ ]]; then
      # shellcheck disable=SC2053 # it is a pattern
      [[ ${BASH_REMATCH[1]} != $3 ]] || result=0
    fi
  fi
  ci_end || result=1
  return "$result"
}

# testRetry MAX DELAY OPERATION true|false: whether a job passes within MAX attempts.
testRetry() {
  local run passed=false
  ci_begin
  run=$(ci_add --attempts "$1" --delay "$2" -- "$3")
  ci_serve BOB_MAX_PARALLEL_RUNS=1
  ci_wait "\[(INFO|ERROR)\] run $run (passed|failed)" || return 1
  ! grep -Eq "\[INFO\] run $run passed" "$CI_DIR/log" || passed=true
  ci_end && [[ $passed == "$4" ]]
}

# testParallelExecution JOB1 JOB2 MAX: with MAX 2 both jobs run at the same time, otherwise in
# sequence.
testParallelExecution() {
  local wait_for_other='' result=1 first second order
  ci_begin
  # Each continues only after the other one has started.
  # shellcheck disable=SC2016 # the job's shell expands it
  (($3 < 2)) || wait_for_other='until [ "$(grep -c begin "$CI_DIR/order")" = 2 ]; do sleep 0.05; done;'
  local around="echo begin >>'$CI_DIR/order'; CI_DIR='$CI_DIR'; $wait_for_other"
  first=$(ci_add --attempts 1 -- "$around ( $1 ) && echo end >>'$CI_DIR/order'")
  second=$(ci_add --attempts 1 -- "$around ( $2 ) && echo end >>'$CI_DIR/order'")
  ci_serve "BOB_MAX_PARALLEL_RUNS=$3"
  if ci_wait "run $first (passed|failed)" && ci_wait "run $second (passed|failed)"; then
    order=$(tr '\n' ' ' <"$CI_DIR/order")
    if (($3 < 2)); then
      [[ $order != 'begin end begin end ' ]] || result=0
    else
      [[ $order != 'begin begin end end ' ]] || result=0
    fi
  fi
  ci_end || result=1
  return "$result"
}
