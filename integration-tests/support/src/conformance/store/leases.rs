//! Keys that end with a lease.

use std::sync::Arc;
use std::time::Duration;

use super::subject::{StoreSubject, gone, next};
use crate::conformance::soon;
use runner::ports::{Change, LeaseId, Store, StoreError, Txn};

pub(super) async fn keys_end_with_their_lease(subject: &StoreSubject) {
    let (a, b, free) = (subject.key("lease/a"), subject.key("lease/b"), subject.key("lease/free"));
    let asked = Duration::from_secs(60);
    let granted = subject.store.grant(asked).await.expect("a lease is granted");
    assert!(granted.ttl >= asked, "a lease is as long as asked, at least");
    subject.store.keep_alive(granted.lease).await.expect("it is renewed");

    let made = subject
        .made(
            Txn::new()
                .put_leased(&a, b"1".to_vec(), granted.lease)
                .put_leased(&b, b"1".to_vec(), granted.lease)
                .put(&free, b"1".to_vec()),
        )
        .await;
    subject.made(Txn::new().put_leased(&b, b"2".to_vec(), granted.lease)).await;
    let from = subject.store.list(&subject.key("lease/")).await.unwrap().revision + 1;
    let mut changes = subject.other.watch(&subject.key("lease/"), from).await.unwrap();

    subject.store.revoke(granted.lease).await.expect("a lease can be revoked");
    assert_eq!(subject.names(&subject.key("lease/")).await, [free], "its keys go with it");
    let removed = [next(&mut changes).await, next(&mut changes).await];
    for key in [&a, &b] {
        let seen = removed.iter().any(|change| {
            matches!(change, Change::Deleted { key: gone, revision }
                if gone == key && *revision > made.revision)
        });
        assert!(seen, "a watch sees that {key} went: {removed:?}");
    }

    subject.store.revoke(granted.lease).await.expect("what is gone can be revoked");
    lost(&subject.store, granted.lease).await;
    let late = Txn::new().put_leased(&a, b"late".to_vec(), granted.lease);
    match subject.store.txn(late).await {
        Err(StoreError::LeaseGone(id)) => assert_eq!(id, granted.lease.0),
        other => panic!("a key cannot hang on a lease that is gone: {other:?}"),
    }
    assert_eq!(subject.get(&a).await, None);
}

async fn lost(store: &Arc<dyn Store>, lease: LeaseId) {
    match store.keep_alive(lease).await {
        Err(StoreError::LeaseGone(id)) => assert_eq!(id, lease.0),
        other => panic!("a lease that is gone is not renewed: {other:?}"),
    }
}

pub(super) async fn a_key_leaves_its_lease_when_it_is_written_again(subject: &StoreSubject) {
    let (kept, moved, renewed) =
        (subject.key("leave/kept"), subject.key("leave/moved"), subject.key("leave/renewed"));
    let first = subject.store.grant(Duration::from_secs(60)).await.unwrap().lease;
    let second = subject.store.grant(Duration::from_secs(60)).await.unwrap().lease;
    assert_ne!(first, second);
    for key in [&kept, &moved, &renewed] {
        subject.made(Txn::new().put_leased(key, b"1".to_vec(), first)).await;
    }
    subject.made(Txn::new().put(&kept, b"2".to_vec())).await;
    subject.made(Txn::new().put_leased(&moved, b"2".to_vec(), second)).await;
    subject.made(Txn::new().delete(&renewed)).await;
    subject.made(Txn::new().put(&renewed, b"2".to_vec())).await;

    subject.store.revoke(first).await.unwrap();
    let all = [kept.clone(), moved.clone(), renewed.clone()];
    assert_eq!(subject.names(&subject.key("leave/")).await, all);
    subject.store.revoke(second).await.unwrap();
    assert_eq!(subject.names(&subject.key("leave/")).await, [kept, renewed]);
}

pub(super) async fn a_key_moves_to_another_lease_with_its_value(subject: &StoreSubject) {
    let store = &subject.store;
    let key = |name: &str| format!("{}moves/{name}", subject.prefix);
    let hour = Duration::from_secs(3600);
    let (first, second) =
        (store.grant(hour).await.unwrap().lease, store.grant(hour).await.unwrap().lease);
    subject.made(Txn::new().put_leased(key("leased"), b"a".to_vec(), first)).await;
    let made = subject.made(Txn::new().put(key("lasting"), b"b".to_vec())).await;
    let attach = Txn::new()
        .put(key("beside"), b"c".to_vec())
        .attach(key("leased"), second)
        .attach(key("lasting"), second)
        .attach(key("absent"), second)
        .read(key("lasting"));
    let moved = subject.made(attach).await;
    let lasting = moved.entry(0).unwrap();
    assert_eq!(lasting.value, b"b");
    assert_eq!((lasting.create_revision, lasting.mod_revision), (made.revision, moved.revision));
    assert!(subject.get(&key("absent")).await.is_none(), "nothing is made of an absent key");
    store.revoke(first).await.unwrap();
    assert_eq!(subject.get(&key("leased")).await.unwrap().value, b"a");
    store.revoke(second).await.unwrap();
    for gone in ["leased", "lasting"] {
        assert!(subject.get(&key(gone)).await.is_none(), "{gone}");
    }
    assert_eq!(subject.get(&key("beside")).await.unwrap().value, b"c");
    let refused = store.txn(Txn::new().attach(key("beside"), second)).await.unwrap_err();
    assert!(matches!(refused, StoreError::LeaseGone(_)), "{refused}");
}

pub(super) async fn a_lease_runs_out_unless_it_is_renewed(subject: &StoreSubject) {
    let (dies, lives) = (subject.key("expire/dies"), subject.key("expire/lives"));
    let asked = Duration::from_secs(1);
    let short = subject.store.grant(asked).await.unwrap();
    let long = subject.store.grant(asked).await.unwrap();
    assert!(short.ttl >= asked);
    subject.made(Txn::new().put_leased(&dies, b"1".to_vec(), short.lease)).await;
    let made = subject.made(Txn::new().put_leased(&lives, b"1".to_vec(), long.lease)).await;

    let mut changes =
        subject.other.watch(&subject.key("expire/"), made.revision + 1).await.unwrap();
    let renewing = async {
        loop {
            subject.store.keep_alive(long.lease).await.expect("it is renewed in time");
            tokio::time::sleep(long.ttl / 4).await;
        }
    };
    tokio::select! {
        revision = soon("the end of a lease", gone(&mut changes, &dies)) => {
            assert!(revision > made.revision);
        }
        () = renewing => {}
    }
    assert_eq!(subject.get(&dies).await, None);
    lost(&subject.store, short.lease).await;
    assert!(subject.get(&lives).await.is_some(), "what is renewed lives on");
    soon("the end of the other lease", gone(&mut changes, &lives)).await;
}
