# shellcheck shell=bash
# etcd on loopback: one member or a small cluster. It syncs to disk like a production one.

etcd_units() {
  local member
  for ((member = 1; member <= MEMBERS; member++)); do echo "etcd-$member"; done
}

etcd_configure() {
  local member
  for ((member = 1; member <= MEMBERS; member++)); do
    service_directory "$INSTANCE/data/etcd-$member"
  done
}

etcd_scheme() { if [ "$TLS" = yes ]; then echo https; else echo http; fi; }

etcd_start() {
  local member cluster='' tls=$INSTANCE/tls scheme
  local -a as options
  scheme=$(etcd_scheme)
  in_suite as
  for ((member = 1; member <= MEMBERS; member++)); do
    cluster+=${cluster:+,}etcd-$member=http://127.0.0.1:$(port_of "etcd_peer_$member")
  done
  for ((member = 1; member <= MEMBERS; member++)); do
    ! unit_runs "etcd-$member" || continue
    options=(
      --name "etcd-$member" --data-dir "$INSTANCE/data/etcd-$member" --logger zap
      --listen-client-urls "$scheme://127.0.0.1:$(port_of "etcd_$member")"
      --advertise-client-urls "$scheme://127.0.0.1:$(port_of "etcd_$member")"
      --listen-peer-urls "http://127.0.0.1:$(port_of "etcd_peer_$member")"
      --initial-advertise-peer-urls "http://127.0.0.1:$(port_of "etcd_peer_$member")"
      --initial-cluster "$cluster" --initial-cluster-token "bob-$NAME"
    )
    [ "$TLS" = no ] || options+=(
      --client-cert-auth --trusted-ca-file "$tls/ca.pem"
      --cert-file "$tls/server.pem" --key-file "$tls/server.key"
    )
    start_unit "etcd-$member" "${as[@]}" etcd "${options[@]}"
  done
}

etcd_await() {
  local member
  for ((member = 1; member <= MEMBERS; member++)); do
    await_unit "etcd-$member" etcd_healthy "$member"
  done
}

etcd_healthy() {
  local tls=$INSTANCE/tls
  local -a with=()
  [ "$TLS" = no ] || with=(--cacert "$tls/ca.pem" --cert "$tls/client.pem" --key "$tls/client.key")
  http "${with[@]}" "$(etcd_scheme)://127.0.0.1:$(port_of "etcd_$1")/health" | grep -q '"health": *"true"'
}

etcd_env() {
  local member urls='' host=127.0.0.1 tls=$INSTANCE/tls
  [ "$TLS" = no ] || host=localhost
  for ((member = 1; member <= MEMBERS; member++)); do
    urls+=${urls:+,}$(etcd_scheme)://$host:$(port_of "etcd_$member")
  done
  printf '%s\n' "BOB_STORAGE_URLS=$urls"
  [ "$TLS" = no ] || printf '%s\n' "BOB_STORAGE_CA=$tls/ca.pem" \
    "BOB_STORAGE_CERT=$tls/client.pem" "BOB_STORAGE_KEY=$tls/client.key"
}
