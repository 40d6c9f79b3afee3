# shellcheck shell=bash
# RabbitMQ: a broker with its own node name, cookie, epmd and ports, separate from any other on this
# host. Everything is on loopback. Streams and the management API are enabled.

RABBITMQ_MEMORY=1GB

rabbitmq_units() { printf 'epmd\nrabbitmq\n'; }

rabbitmq_configure() {
  local to=$INSTANCE/conf/rabbitmq tls=$INSTANCE/tls
  mkdir -p "$to/conf.d"
  service_directory "$INSTANCE/data/rabbitmq" "$INSTANCE/home"
  echo '[rabbitmq_management,rabbitmq_stream].' >"$to/enabled_plugins"
  : >"$to/rabbitmq-env.conf"
  {
    cat <<CONF
listeners.tcp.1 = 127.0.0.1:$(port_of amqp)
stream.listeners.tcp.1 = 127.0.0.1:$(port_of stream)
stream.advertised_host = 127.0.0.1
stream.advertised_port = $(port_of stream)
management.tcp.ip = 127.0.0.1
management.tcp.port = $(port_of management)
# Low limits for a shared test host. Only specific tests make the broker block publishers.
vm_memory_high_watermark.absolute = $RABBITMQ_MEMORY
disk_free_limit.absolute = 100MB
raft.wal_max_size_bytes = 67108864
log.console = true
log.console.level = info
log.file = false
CONF
    [ "$TLS" = no ] || cat <<CONF
listeners.ssl.1 = 127.0.0.1:$(port_of amqps)
ssl_options.cacertfile = $tls/ca.pem
ssl_options.certfile = $tls/server.pem
ssl_options.keyfile = $tls/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
CONF
  } >"$to/rabbitmq.conf"
  # Read after the file above, so that the caller's settings win.
  sed -n 's/^rabbitmq-set \([^=]*\)=\(.*\)/\1 = \2/p' "$INSTANCE/options" >"$to/conf.d/50-set.conf"
}

rabbitmq_start() {
  local -a as
  local data=$INSTANCE/data/rabbitmq conf=$INSTANCE/conf/rabbitmq
  local -a environment=(
    "ERL_EPMD_PORT=$(port_of epmd)" ERL_EPMD_ADDRESS=127.0.0.1
    "ERL_CRASH_DUMP=$data/erl_crash.dump"
    "RABBITMQ_NODENAME=$(rabbitmq_node)" "RABBITMQ_DIST_PORT=$(port_of distribution)"
    "RABBITMQ_MNESIA_BASE=$data/mnesia" "RABBITMQ_LOG_BASE=$data/log"
    "RABBITMQ_GENERATED_CONFIG_DIR=$data/config" "RABBITMQ_SCHEMA_DIR=$data/schema"
    "RABBITMQ_PLUGINS_EXPAND_DIR=$data/plugins" "RABBITMQ_PID_FILE=$data/pid"
    "RABBITMQ_CONFIG_FILE=$conf/rabbitmq.conf" "RABBITMQ_CONFIG_FILES=$conf/conf.d"
    "RABBITMQ_ADVANCED_CONFIG_FILE=$conf/none.config"
    "RABBITMQ_CONF_ENV_FILE=$conf/rabbitmq-env.conf"
    "RABBITMQ_ENABLED_PLUGINS_FILE=$conf/enabled_plugins"
    'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}'
    # Makes the launcher become the server instead of watching it, so that the stored pid is the
    # broker's.
    RUNNING_UNDER_SYSTEMD=true
  )
  in_suite as "${environment[@]}"
  unit_runs epmd ||
    start_unit epmd "${as[@]}" epmd -address 127.0.0.1 -port "$(port_of epmd)"
  unit_runs rabbitmq && return 0
  # The broker connects to its epmd at once, and would start another one if there were none.
  await_unit epmd port_answers "$(port_of epmd)"
  start_unit rabbitmq "${as[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server
}

rabbitmq_node() { printf 'bob-%s@localhost' "$NAME"; }

rabbitmq_await() {
  await_unit rabbitmq rabbitmq_listens amqp
  await_unit rabbitmq rabbitmq_listens stream
}

# Asks the broker itself: its port can accept connections before it is ready.
rabbitmq_listens() {
  http --user guest:guest --output /dev/null \
    "http://127.0.0.1:$(port_of management)/api/health/checks/port-listener/$(port_of "$1")"
}

# The broker remembers the names of its quorum queues, and of the coordinator of its streams, in tables
# that it writes about a second after a change. A SIGKILL before that loses the names: the coordinator
# is then never started again, and every durable stream stays "down or inaccessible". Only the first
# second of a broker is like that, so a test's kill waits until the names are on disk. A broker that
# does not answer is killed as it is.
rabbitmq_await_names() {
  wait_for 20 rabbitmq_names_are_written || die "the broker's names of queues are not on disk after 20 s"
}

rabbitmq_names_are_written() {
  local queues entry name vhost type tables
  tables=$INSTANCE/data/rabbitmq/mnesia/$(rabbitmq_node)
  queues=$(http --user guest:guest \
    "http://127.0.0.1:$(port_of management)/api/queues?columns=name,type,vhost&disable_stats=true") || return 0
  while read -r entry; do
    name=$(json_text name "$entry") vhost=$(json_text vhost "$entry") type=$(json_text type "$entry")
    [ "$vhost" != / ] || vhost=%2F
    case $type in
      stream) grep -qaF rabbit_stream_coordinator "$tables"/coordination/*/names.dets || return 1 ;;
      quorum) grep -qaF "${vhost}_$name" "$tables"/quorum/*/names.dets || return 1 ;;
    esac
  done < <(tr '{' '\n' <<<"$queues" | grep '"name"')
}

# The text of one key of a flat object without escapes.
json_text() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" <<<"$2"; }

rabbitmq_alarm() { rabbitmq_set_watermark 0.000001; }

rabbitmq_unalarm() { rabbitmq_set_watermark absolute "$RABBITMQ_MEMORY"; }

rabbitmq_set_watermark() {
  local -a as
  in_suite as "ERL_EPMD_PORT=$(port_of epmd)"
  # It reads its working directory, but the service user might not have access to the current one.
  (cd / && "${as[@]}" /usr/lib/rabbitmq/bin/rabbitmqctl --quiet --node "$(rabbitmq_node)" \
    set_vm_memory_high_watermark "$@")
}

rabbitmq_env() {
  if [ "$TLS" = yes ]; then
    printf '%s\n' "BOB_QUEUE_URL=amqps://localhost:$(port_of amqps)" \
      "BOB_QUEUE_CA=$INSTANCE/tls/ca.pem" \
      "BOB_TEST_QUEUE_PLAIN_URL=amqp://127.0.0.1:$(port_of amqp)"
  else
    printf '%s\n' "BOB_QUEUE_URL=amqp://127.0.0.1:$(port_of amqp)"
  fi
  printf '%s\n' BOB_QUEUE_USER=guest BOB_QUEUE_PASSWORD=guest \
    "BOB_TEST_STREAM_URL=rabbitmq-stream://guest:guest@127.0.0.1:$(port_of stream)" \
    "BOB_TEST_MANAGEMENT_URL=http://127.0.0.1:$(port_of management)"
}
