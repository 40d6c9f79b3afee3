//! The store port on a real etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use runner::cluster::Etcd;
use runner::ports::{Change, Changes, Entry, Expect, LeaseId, Store as _, StoreError, Txn};
use test_support::conformance::{self, StoreSubject};
use test_support::raw;
use test_support::services::{OwnServices, STORE, Services};

const PATIENCE: Duration = Duration::from_secs(60);

/// The store of the environment, and a unique prefix.
async fn store() -> Option<(Etcd, String)> {
    let services = Services::from_env(STORE)?;
    let etcd = Etcd::connect(&services.etcd()).await.unwrap();
    Some((etcd, prefix()))
}

fn prefix() -> String {
    format!("test/{}/", uuid::Uuid::new_v4())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_passes_the_conformance_suite() {
    // A separate etcd, because a compaction affects every test.
    let Some(own) = OwnServices::start("etcd", &[]) else { return };
    let options = own.services().etcd();
    let raw = raw_client(own.services()).await;
    conformance::store(StoreSubject {
        prefix: prefix(),
        store: Arc::new(Etcd::connect(&options).await.unwrap()),
        other: Arc::new(Etcd::connect(&options).await.unwrap()),
        compact: Some(Box::new(move |revision| {
            let mut raw = raw.clone();
            async move {
                raw.compact(revision, None).await.unwrap();
            }
            .boxed()
        })),
    })
    .await;
}

async fn put(etcd: &Etcd, key: &str, value: &str) -> i64 {
    let reply = etcd.txn(Txn::new().put(key, value.into())).await.unwrap();
    assert!(reply.committed);
    reply.revision
}

async fn next(changes: &mut Changes) -> Result<Change, StoreError> {
    let waited = tokio::time::timeout(PATIENCE, changes.next()).await;
    waited.expect("a change in time").expect("the watch continues")
}

fn entry(change: Result<Change, StoreError>) -> Entry {
    match change.unwrap() {
        Change::Put(entry) => entry,
        Change::Deleted { key, .. } => panic!("{key} was deleted"),
    }
}

#[tokio::test]
async fn reads_follow_the_changes_and_also_happen_without_changes() {
    let Some((etcd, prefix)) = store().await else { return };
    let (a, b) = (format!("{prefix}a"), format!("{prefix}b"));
    let made = Txn::new()
        .when(&a, Expect::Absent)
        .put(&a, b"1".to_vec())
        .put(&b, b"2".to_vec())
        .read(&a)
        .read_prefix(&prefix);
    let reply = etcd.txn(made.clone()).await.unwrap();
    assert!(reply.committed);
    assert_eq!(reply.entry(0).unwrap().create_revision, reply.revision);
    assert_eq!(reply.reads[1].len(), 2);

    let again = etcd.txn(made).await.unwrap();
    assert!(!again.committed);
    assert_eq!(again.entry(0), reply.entry(0));
    assert_eq!(again.reads[1].len(), 2);
}

#[tokio::test]
async fn a_transaction_requires_all_its_conditions() {
    let Some((etcd, prefix)) = store().await else { return };
    let key = format!("{prefix}a");
    let created = put(&etcd, &key, "1").await;
    let changed = put(&etcd, &key, "2").await;
    for (expect, holds) in [
        (Expect::Absent, false),
        (Expect::Present, true),
        (Expect::CreatedAt(created), true),
        (Expect::CreatedAt(changed), false),
        (Expect::ModifiedAt(created), false),
        (Expect::ModifiedAt(changed), true),
    ] {
        let reply = etcd.txn(Txn::new().when(&key, expect)).await.unwrap();
        assert_eq!(reply.committed, holds, "{expect:?}");
    }
    let deleted = etcd.txn(Txn::new().when(&key, Expect::Present).delete(&key)).await.unwrap();
    assert!(deleted.committed);
    assert_eq!(etcd.get(&key).await.unwrap(), None);
}

#[tokio::test]
async fn a_long_list_is_complete_and_from_one_revision() {
    let Some((etcd, prefix)) = store().await else { return };
    for tens in 0..20 {
        let txn = (0..10).fold(Txn::new(), |txn, ones| {
            txn.put(format!("{prefix}{tens:02}{ones}"), vec![b'x'; 50_000])
        });
        assert!(etcd.txn(txn).await.unwrap().committed);
    }
    // Outside the prefix, although it begins almost the same way.
    let beyond = format!("{}0", prefix.strip_suffix('/').unwrap());
    put(&etcd, &beyond, "beyond").await;
    let listing = etcd.list(&prefix).await.unwrap();
    assert_eq!(listing.entries.len(), 200);
    assert!(listing.entries.is_sorted_by(|a, b| a.key < b.key));
    assert!(listing.entries.iter().all(|entry| entry.mod_revision <= listing.revision));
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_with_the_reason() {
    let Some((etcd, prefix)) = store().await else { return };
    for bytes in [1_700_000, 4_000_000] {
        let refused = etcd.txn(Txn::new().put(format!("{prefix}a"), vec![b'x'; bytes])).await;
        let error = refused.unwrap_err();
        assert!(matches!(error, StoreError::Refused(_)), "{error}");
        assert!(error.to_string().contains("1.5 MiB"), "{error}");
    }
    let nearly = etcd.txn(Txn::new().put(format!("{prefix}a"), vec![b'x'; 1_400_000])).await;
    assert!(nearly.unwrap().committed);
}

#[tokio::test]
async fn a_lease_can_be_renewed_and_revoked_and_its_end_is_noticed() {
    let Some((etcd, prefix)) = store().await else { return };
    let granted = etcd.grant(Duration::from_millis(9_500)).await.unwrap();
    assert!(granted.ttl >= Duration::from_secs(10), "{granted:?}");
    let key = format!("{prefix}owner");
    let owned = Txn::new().put_leased(&key, Vec::new(), granted.lease);
    let revision = etcd.txn(owned).await.unwrap().revision;
    etcd.keep_alive(granted.lease).await.unwrap();

    let mut changes = etcd.watch(&prefix, revision + 1).await.unwrap();
    etcd.revoke(granted.lease).await.unwrap();
    match next(&mut changes).await.unwrap() {
        Change::Deleted { key: gone, revision: at } => assert!(gone == key && at > revision),
        Change::Put(entry) => panic!("{entry:?}"),
    }
    // Revoking a missing lease succeeds.
    etcd.revoke(granted.lease).await.unwrap();
    let LeaseId(id) = granted.lease;
    let renewed = etcd.keep_alive(granted.lease).await;
    assert!(matches!(renewed, Err(StoreError::LeaseGone(gone)) if gone == id), "{renewed:?}");
    let owned = etcd.txn(Txn::new().put_leased(&key, Vec::new(), granted.lease)).await;
    assert!(matches!(owned, Err(StoreError::LeaseGone(gone)) if gone == id), "{owned:?}");
}

#[tokio::test]
async fn a_watch_starts_at_a_past_revision_and_omits_other_prefixes() {
    let Some((etcd, prefix)) = store().await else { return };
    let (a, b) = (format!("{prefix}a"), format!("{prefix}b"));
    let first = put(&etcd, &a, "1").await;
    put(&etcd, &format!("{prefix}b"), "2").await;
    let mut changes = etcd.watch(&prefix, first + 1).await.unwrap();
    assert_eq!(entry(next(&mut changes).await).key, b);
    put(&etcd, &super_prefix(&prefix), "not seen").await;
    let last = put(&etcd, &a, "3").await;
    let seen = entry(next(&mut changes).await);
    assert_eq!((seen.value.as_slice(), seen.mod_revision), (b"3".as_slice(), last));
    assert_eq!(seen.create_revision, first);
}

#[tokio::test]
async fn a_key_that_is_not_text_is_skipped_with_one_warning() {
    let Some(services) = Services::from_env(STORE) else { return };
    let (warnings, prefix) = (raw::Warnings::default(), prefix());
    let watching = warnings.watch();
    let etcd = Etcd::connect(&services.etcd()).await.unwrap();
    let (a, b) = (format!("{prefix}a"), format!("{prefix}z"));
    let first = put(&etcd, &a, "1").await;
    let odd = [prefix.as_bytes(), b"\xff\xfe"].concat();
    let early = [prefix.as_bytes(), b"a\xff"].concat();
    let mut raw = raw_client(&services).await;
    raw.put(odd.clone(), "odd", None).await.unwrap();
    raw.put(early.clone(), "odd", None).await.unwrap();
    put(&etcd, &b, "2").await;

    let keys = |entries: &[Entry]| -> Vec<String> {
        entries.iter().map(|entry| entry.key.clone()).collect()
    };
    assert_eq!(keys(&etcd.list(&prefix).await.unwrap().entries), [a.clone(), b.clone()]);
    let page = etcd.page(&prefix, None, 2).await.unwrap();
    assert_eq!(keys(&page.entries), [a.clone(), b.clone()], "a short page would be the last one");
    let read = etcd.txn(Txn::new().read_prefix(&prefix)).await.unwrap();
    assert_eq!(keys(&read.reads[0]), [a.clone(), b.clone()]);

    let mut changes = etcd.watch(&prefix, first).await.unwrap();
    assert_eq!(entry(next(&mut changes).await).key, a);
    assert_eq!(entry(next(&mut changes).await).key, b);
    for key in [odd, early] {
        raw.delete(key, None).await.unwrap();
    }
    put(&etcd, &a, "3").await;
    assert_eq!(entry(next(&mut changes).await).value, b"3");
    drop(watching);
    let told = warnings.containing(&prefix);
    assert_eq!(told.len(), 2, "{told:?}");
}

fn super_prefix(prefix: &str) -> String {
    format!("{}~", prefix.strip_suffix('/').unwrap())
}

#[tokio::test]
async fn a_watch_of_a_compacted_revision_ends_with_that_error() {
    // A separate etcd, because a compaction affects every test.
    let Some(own) = OwnServices::start("etcd", &[]) else { return };
    let (etcd, prefix) = (Etcd::connect(&own.services().etcd()).await.unwrap(), prefix());
    let first = put(&etcd, &format!("{prefix}a"), "1").await;
    let last = put(&etcd, &format!("{prefix}a"), "2").await;
    let mut raw = raw_client(own.services()).await;
    raw.compact(last, None).await.unwrap();
    let mut changes = etcd.watch(&prefix, first).await.unwrap();
    let error = next(&mut changes).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Compacted { asked, oldest } if asked == first && oldest >= last),
        "{error}"
    );
    assert!(changes.next().await.is_none());
}

async fn raw_client(services: &Services) -> etcd_client::Client {
    etcd_client::Client::connect(services.etcd().urls, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_continues_where_it_was_after_etcd_returns() {
    let Some(own) = OwnServices::start("etcd", &[]) else { return };
    let (etcd, prefix) = (Etcd::connect(&own.services().etcd()).await.unwrap(), prefix());
    let other = etcd.clone();
    let first = put(&etcd, &format!("{prefix}0"), "").await;
    let mut changes = etcd.watch(&prefix, first).await.unwrap();
    assert_eq!(entry(next(&mut changes).await).mod_revision, first);
    own.control("kill", "etcd").await;

    let key = format!("{prefix}1");
    let failed = etcd.txn(Txn::new().put(&key, Vec::new())).await.unwrap_err();
    assert!(matches!(failed, StoreError::Unreachable { .. }), "{failed}");
    own.control("start", "etcd").await;

    let written = until(|| other.txn(Txn::new().put(&key, b"back".to_vec()))).await;
    let seen = entry(next(&mut changes).await);
    assert_eq!((seen.key, seen.mod_revision), (key, written.revision));
}

/// Retries until the service answers without an error.
async fn until<T, F: Future<Output = Result<T, StoreError>>>(work: impl Fn() -> F) -> T {
    let trying = async {
        loop {
            match work().await {
                Ok(done) => return done,
                Err(error) => assert!(error.retryable(), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_store_is_unreachable_within_seconds_and_recovers() {
    let Some(own) = OwnServices::start("etcd", &[]) else { return };
    let (etcd, prefix) = (Etcd::connect(&own.services().etcd()).await.unwrap(), prefix());
    let granted = etcd.grant(Duration::from_secs(3600)).await.unwrap();
    let mut changes = etcd.watch(&prefix, 1).await.unwrap();
    own.control("pause", "etcd").await;
    let limit = Duration::from_secs(15);
    let got = tokio::time::timeout(limit, etcd.get(&prefix)).await.expect("a deadline of its own");
    assert!(matches!(got, Err(StoreError::Unreachable { .. })), "{got:?}");
    let renewed = tokio::time::timeout(limit, etcd.keep_alive(granted.lease)).await;
    let renewed = renewed.expect("a deadline of its own");
    assert!(matches!(renewed, Err(StoreError::Unreachable { .. })), "{renewed:?}");
    own.control("unpause", "etcd").await;
    until(|| etcd.keep_alive(granted.lease)).await;
    let key = format!("{prefix}a");
    put(&etcd, &key, "1").await;
    assert_eq!(entry(next(&mut changes).await).key, key);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_passwords_are_checked_and_a_lost_token_is_replaced() {
    let Some(own) = OwnServices::start("etcd", &[]) else { return };
    let (mut options, prefix) = (own.services().etcd(), prefix());
    enable_authentication(own.services()).await;

    let nobody = Etcd::connect(&options).await.unwrap_err();
    assert!(matches!(nobody, StoreError::Denied { .. }), "{nobody}");
    assert!(nobody.to_string().contains("none is given"), "{nobody}");

    options.user = Some("bob".to_owned());
    options.password = Some("wr0ng-secret".to_owned());
    let wrong = Etcd::connect(&options).await.unwrap_err();
    assert!(matches!(wrong, StoreError::Denied { .. }), "{wrong}");
    assert!(!format!("{wrong} {wrong:?}").contains("wr0ng-secret"), "{wrong}");

    options.password = Some("right".to_owned());
    let etcd = Etcd::connect(&options).await.unwrap();
    let key = format!("{prefix}a");
    let first = put(&etcd, &key, "1").await;
    let mut changes = etcd.watch(&prefix, first + 1).await.unwrap();
    let granted = etcd.grant(Duration::from_secs(3600)).await.unwrap();

    // The server keeps tokens only in memory.
    own.control("restart", "etcd").await;
    let reply = until(|| etcd.txn(Txn::new().put(&key, b"2".to_vec()))).await;
    assert_eq!(entry(next(&mut changes).await).mod_revision, reply.revision);
    until(|| etcd.keep_alive(granted.lease)).await;

    let denied = etcd.get("elsewhere").await.unwrap_err();
    assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");
    let Err(denied) = etcd.watch("elsewhere", 1).await else { panic!("a watch without the right") };
    assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_down_or_hangs_is_not_used_again() {
    let Some(own) = OwnServices::start("etcd", &["--etcd-members", "3"]) else { return };
    enable_authentication(own.services()).await;
    let mut options = own.services().etcd();
    options.user = Some("bob".to_owned());
    options.password = Some("right".to_owned());
    let (etcd, prefix) = (Etcd::connect(&options).await.unwrap(), prefix());
    let key = format!("{prefix}a");
    let revision = put(&etcd, &key, "0").await;
    let mut changes = etcd.watch(&prefix, revision + 1).await.unwrap();

    // A new leader might have to be elected first, so `written` retries.
    let written = async |value: &str| {
        let txn = Txn::new().put(&key, value.into());
        assert!(until(|| etcd.txn(txn.clone())).await.committed);
    };
    // The member that clients contact first.
    own.control("kill", "etcd-1").await;
    written("1").await;
    for _ in 0..20 {
        put(&etcd, &key, "2").await;
        entry(next(&mut changes).await);
    }
    drop(Etcd::connect(&options).await.expect("a connection to the other members"));
    own.control("start", "etcd-1").await;

    own.control("pause", "etcd-2").await;
    written("3").await;
    for _ in 0..20 {
        put(&etcd, &key, "4").await;
    }
    // The watch also moves to another member, and delivers missed changes.
    for _ in 0..22 {
        entry(next(&mut changes).await);
    }
    let granted = etcd.grant(Duration::from_secs(60)).await.unwrap();
    own.control("unpause", "etcd-2").await;
    etcd.keep_alive(granted.lease).await.unwrap();
}

/// Creates the users `root` and `bob`, who has the permissions of a worker.
async fn enable_authentication(services: &Services) {
    use etcd_client::{Permission, PermissionType};
    let mut client = raw_client(services).await;
    client.user_add("root", "root", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("worker").await.unwrap();
    for prefix in ["bob.", "test/"] {
        let all = Permission::new(PermissionType::Readwrite, prefix).with_prefix();
        client.role_grant_permission("worker", all).await.unwrap();
    }
    client.user_add("bob", "right", None).await.unwrap();
    client.user_grant_role("bob", "worker").await.unwrap();
    client.auth_enable().await.unwrap();
}

#[tokio::test]
async fn a_configured_user_is_not_used_if_authentication_is_off() {
    let Some(services) = Services::from_env(STORE) else { return };
    let mut options = services.etcd();
    options.user = Some("bob".to_owned());
    options.password = Some("unused".to_owned());
    let etcd = Etcd::connect(&options).await.unwrap();
    assert_eq!(etcd.get(&prefix()).await.unwrap(), None);
}

#[tokio::test]
async fn an_unreachable_store_is_retried_the_configured_number_of_times() {
    let Some(services) = Services::from_env(STORE) else { return };
    let mut options = services.etcd();
    options.urls = vec!["http://127.0.0.1:1".to_owned()];
    options.retry_attempts = 3;
    options.retry_delay = Duration::from_millis(50);
    let began = tokio::time::Instant::now();
    let error = Etcd::connect(&options).await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
    assert!(began.elapsed() >= options.retry_delay * 2);
}

#[tokio::test]
async fn a_transaction_over_the_etcd_limit_is_refused_and_not_split() {
    let Some((etcd, prefix)) = store().await else { return };
    let many = |count: usize| {
        (0..count).fold(Txn::new(), |txn, n| txn.put(format!("{prefix}{n}"), Vec::new()))
    };
    assert!(etcd.txn(many(128)).await.unwrap().committed);
    let refused = etcd.txn(many(129)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused}");
}
