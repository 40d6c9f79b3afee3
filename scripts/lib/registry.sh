# shellcheck shell=bash
# Two image registries on loopback: an open one, and one with a name and a password.

# bob-secret as written by `htpasswd -Bbn bob bob-secret`. The registry accepts only bcrypt.
# shellcheck disable=SC2016 # no variables
REGISTRY_LOGIN='bob:$2y$05$YPeGsYQDrhR8cJ4qRUQ7Qe4g4xUfXazK41C221E1qm1KdxLth4nF.'

registry_units() { printf 'registry\nregistry-auth\n'; }

registry_configure() {
  local to=$INSTANCE/conf/registry
  mkdir -p "$to"
  service_directory "$INSTANCE/data/registry" "$INSTANCE/data/registry-auth"
  printf '%s\n' "$REGISTRY_LOGIN" >"$to/htpasswd"
  registry_settings registry registry >"$to/registry.yml"
  {
    registry_settings registry-auth registry_auth
    printf 'auth:\n  htpasswd:\n    realm: bob\n    path: %s/htpasswd\n' "$to"
  } >"$to/registry-auth.yml"
}

# registry_settings UNIT PORT-NAME
registry_settings() {
  cat <<CONF
version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: $INSTANCE/data/$1
  delete:
    enabled: true
http:
  addr: 127.0.0.1:$(port_of "$2")
CONF
}

registry_start() {
  local -a as
  local unit
  service_user_command as
  for unit in registry registry-auth; do
    unit_runs "$unit" || start_unit "$unit" "${as[@]}" \
      docker-registry serve "$INSTANCE/conf/registry/$unit.yml"
  done
}

registry_await() {
  await_unit registry http --output /dev/null "http://127.0.0.1:$(port_of registry)/v2/"
  await_unit registry-auth http --output /dev/null --user bob:bob-secret \
    "http://127.0.0.1:$(port_of registry_auth)/v2/"
}

registry_env() {
  printf '%s\n' "BOB_TEST_REGISTRY=127.0.0.1:$(port_of registry)" \
    "BOB_TEST_REGISTRY_AUTH=127.0.0.1:$(port_of registry_auth)" \
    BOB_TEST_REGISTRY_USER=bob BOB_TEST_REGISTRY_PASSWORD=bob-secret
}
