# shellcheck shell=bash
# Certificates for tests: an authority, a server and a client certificate, and a second authority
# that signed no server here. Created once per instance, only with openssl.

make_certificates() {
  local to=$INSTANCE/tls
  [ ! -e "$to/done" ] || return 0
  service_directory "$to"
  (
    umask 077
    cd "$to"
    make_authority ca 'bob-runner test authority'
    make_authority wrong-ca 'an authority that signed nothing here'
    # etcd's gateway calls etcd with the server certificate, so it must be valid for clients too.
    make_certificate ca server localhost serverAuth,clientAuth
    make_certificate ca client bob clientAuth
    make_certificate wrong-ca wrong-client bob clientAuth
  ) >"$INSTANCE/logs/openssl.log" 2>&1 || {
    tail -n 20 "$INSTANCE/logs/openssl.log" >&2
    die 'openssl could not make the certificates; its message is above'
  }
  is_root && chown -R "$SERVICE_UID:$SERVICE_GID" "$to"
  touch "$to/done"
}

make_authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj "/CN=$2" -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$1.key" -out "$1.pem"
}

# make_certificate AUTHORITY FILE COMMON-NAME PURPOSES
make_certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
    -subj "/CN=$3" -keyout "$2.key" -out "$2.csr"
  printf '%s\n' \
    'basicConstraints = critical, CA:FALSE' \
    'keyUsage = critical, digitalSignature' \
    "extendedKeyUsage = $4" \
    'subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1' >"$2.ext"
  openssl x509 -req -in "$2.csr" -CA "$1.pem" -CAkey "$1.key" -CAcreateserial \
    -days 3650 -extfile "$2.ext" -out "$2.pem"
  rm "$2.csr" "$2.ext"
}
