//! Settings of access to the HTTP API.

use super::*;

#[test]
fn the_http_api_has_no_keys_and_bounded_requests_by_default() {
    let access = config_of([("HOME", "/home/x")]).http_access;
    assert_eq!((access.secret, access.keys, access.certificate), (None, None, None));
    assert_eq!((access.rate.map_or(0, u32::from), access.max_connections), (100, 1000));
    assert_eq!(access.max_body_bytes, 4 << 20);
    assert_eq!([access.header_time, access.request_time].map(|time| time.as_secs()), [10, 30]);
}

#[test]
fn a_secret_of_the_http_api_is_long_enough_and_not_displayed() {
    let access = config_of([("BOB_HTTP_JWT_SECRET", "sixteen letters!")]).http_access;
    assert_eq!(access.secret.unwrap().expose(), "sixteen letters!");
    let faults = faults_of([("BOB_HTTP_JWT_SECRET", "hunter2")]);
    assert!(faults.contains("BOB_HTTP_JWT_SECRET = \"***\": expected at least 16"), "{faults}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a secret in a file\n").unwrap();
    let path = file.path().to_str().unwrap();
    let access = config_of([("BOB_HTTP_JWT_SECRET_FILE", path)]).http_access;
    assert_eq!(access.secret.unwrap().expose(), "a secret in a file");
}

#[test]
fn a_certificate_and_its_key_are_set_together() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let faults = faults_of([("BOB_HTTP_TLS_CERT", path)]);
    assert!(faults.contains("needs http.tls-key too (BOB_HTTP_TLS_KEY)"), "{faults}");
    let faults = faults_of([("BOB_HTTP_TLS_KEY", path)]);
    assert!(faults.contains("needs http.tls-cert too (BOB_HTTP_TLS_CERT)"), "{faults}");
    let both = config_of([("BOB_HTTP_TLS_CERT", path), ("BOB_HTTP_TLS_KEY", path)]);
    assert_eq!(both.http_access.certificate.unwrap().key, file.path());
}

#[test]
fn a_rate_of_zero_means_no_limit() {
    assert_eq!(config_of([("BOB_HTTP_RATE", "0")]).http_access.rate, None);
}
