//! Conformance tests for the [`Store`](runner::ports::Store) port.

mod leases;
mod subject;

use futures::StreamExt;
use futures::future::join_all;

use self::leases::{
    a_key_leaves_its_lease_when_it_is_written_again, a_key_moves_to_another_lease_with_its_value,
    a_lease_runs_out_unless_it_is_renewed, keys_end_with_their_lease,
};
pub use self::subject::StoreSubject;
use self::subject::{gone, next};
use super::{never, soon};
use runner::ports::{Change, Entry, Expect, StoreError, Txn};

/// Asserts the contract of [`Store`](runner::ports::Store).
pub async fn store(subject: StoreSubject) {
    let subject = &subject;
    Box::pin(revisions_tell_what_changed_when(subject)).await;
    Box::pin(demands_are_met_or_nothing_changes(subject)).await;
    Box::pin(reads_are_made_in_both_cases(subject)).await;
    Box::pin(a_listing_is_exact(subject)).await;
    Box::pin(values_are_bytes(subject)).await;
    Box::pin(of_many_claims_exactly_one_wins(subject)).await;
    Box::pin(a_counter_by_compare_loses_no_step(subject)).await;
    Box::pin(a_watch_misses_nothing(subject)).await;
    Box::pin(a_watch_keeps_to_its_prefix(subject)).await;
    Box::pin(keys_end_with_their_lease(subject)).await;
    Box::pin(a_key_leaves_its_lease_when_it_is_written_again(subject)).await;
    Box::pin(a_key_moves_to_another_lease_with_its_value(subject)).await;
    Box::pin(a_lease_runs_out_unless_it_is_renewed(subject)).await;
    Box::pin(a_compacted_watch_says_so(subject)).await;
}

async fn revisions_tell_what_changed_when(subject: &StoreSubject) {
    let (a, b) = (subject.key("rev/a"), subject.key("rev/b"));
    assert_eq!(subject.get(&a).await, None);

    let first = subject.made(Txn::new().put(&a, b"1".to_vec()).put(&b, b"1".to_vec())).await;
    let entry = subject.get(&a).await.expect("what was written is there");
    assert_eq!(entry.key, a);
    assert_eq!(entry.value, b"1");
    assert_eq!(
        entry.create_revision, first.revision,
        "a key is made at its transaction's revision"
    );
    assert_eq!(entry.mod_revision, first.revision);
    assert_eq!(
        subject.get(&b).await.unwrap().create_revision,
        first.revision,
        "all of a transaction has one revision"
    );

    let second = subject.made(Txn::new().put(&a, b"2".to_vec())).await;
    assert!(second.revision > first.revision, "revisions grow");
    let entry = subject.get(&a).await.unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (first.revision, second.revision));
    assert_eq!(subject.get(&b).await.unwrap().mod_revision, first.revision);

    let third = subject.made(Txn::new().delete(&a)).await;
    assert!(third.revision > second.revision, "a removal is a change");
    assert_eq!(subject.get(&a).await, None);
    let fourth = subject.made(Txn::new().put(&a, b"3".to_vec())).await;
    assert_eq!(
        subject.get(&a).await.unwrap().create_revision,
        fourth.revision,
        "a key that is made again has a new create-revision"
    );

    let listing = subject.store.list(&subject.key("rev/")).await.unwrap();
    assert!(listing.revision >= fourth.revision, "a listing has the revision it was read at");
    let nothing = subject.made(Txn::new().delete(subject.key("rev/none"))).await;
    assert!(nothing.revision >= fourth.revision, "removing an absent key is not an error");
}

async fn demands_are_met_or_nothing_changes(subject: &StoreSubject) {
    let (a, b) = (subject.key("cmp/a"), subject.key("cmp/b"));
    let made = subject.made(Txn::new().when(&a, Expect::Absent).put(&a, b"1".to_vec())).await;
    subject.refused(Txn::new().when(&a, Expect::Absent).put(&a, b"2".to_vec())).await;
    subject.refused(Txn::new().when(&b, Expect::Present).put(&a, b"2".to_vec())).await;
    let reply = subject
        .refused(
            Txn::new()
                .when(&a, Expect::Present)
                .when(&b, Expect::Present)
                .put(&a, b"2".to_vec())
                .put(&b, b"2".to_vec()),
        )
        .await;
    assert!(reply.revision >= made.revision);
    assert_eq!(subject.get(&a).await.unwrap().value, b"1", "one demand that fails is enough");
    assert_eq!(subject.get(&b).await, None);

    let later = subject
        .made(Txn::new().when(&a, Expect::ModifiedAt(made.revision)).put(&a, b"2".to_vec()))
        .await;
    subject.refused(Txn::new().when(&a, Expect::ModifiedAt(made.revision)).delete(&a)).await;
    subject.refused(Txn::new().when(&a, Expect::CreatedAt(later.revision)).delete(&a)).await;
    subject.refused(Txn::new().when(&b, Expect::CreatedAt(made.revision)).delete(&a)).await;
    subject.refused(Txn::new().when(&b, Expect::ModifiedAt(made.revision)).delete(&a)).await;
    assert!(subject.get(&a).await.is_some());
    subject
        .made(
            Txn::new()
                .when(&a, Expect::CreatedAt(made.revision))
                .when(&a, Expect::ModifiedAt(later.revision))
                .when(&b, Expect::Absent)
                .delete(&a)
                .put(&b, b"1".to_vec()),
        )
        .await;
    assert_eq!(subject.get(&a).await, None);
    assert!(subject.get(&b).await.is_some());

    let twice = Txn::new().put(&a, b"1".to_vec()).put(&a, b"2".to_vec());
    let refusal = subject.store.txn(twice).await.expect_err("a key is changed once in a txn");
    assert!(!refusal.retryable(), "{refusal} would not fare better a second time");
    assert_eq!(subject.get(&a).await, None);
}

async fn reads_are_made_in_both_cases(subject: &StoreSubject) {
    let (a, b) = (subject.key("read/a"), subject.key("read/b"));
    let reply = subject
        .made(
            Txn::new()
                .when(&a, Expect::Absent)
                .put(&a, b"1".to_vec())
                .put(&b, b"1".to_vec())
                .read(&a)
                .read(subject.key("read/none"))
                .read_prefix(subject.key("read/")),
        )
        .await;
    assert_eq!(reply.reads.len(), 3, "one list for each read");
    let entry = reply.entry(0).expect("reads come after the changes");
    assert_eq!((entry.value.as_slice(), entry.mod_revision), (b"1".as_slice(), reply.revision));
    assert_eq!(reply.entry(1), None);
    assert_eq!(reply.reads[2].len(), 2);

    let reply = subject
        .refused(
            Txn::new()
                .when(&a, Expect::Absent)
                .put(&a, b"2".to_vec())
                .read_prefix(subject.key("read/"))
                .read(&a),
        )
        .await;
    assert_eq!(reply.reads.len(), 2);
    assert_eq!(reply.reads[0].len(), 2);
    assert_eq!(reply.entry(1).expect("reads are made in any case").value, b"1");

    let reply = subject
        .refused(Txn::new().when(&a, Expect::Absent).delete(&a).read(&b).read_otherwise(&a))
        .await;
    assert_eq!(reply.reads.len(), 2, "what is read otherwise comes last");
    assert_eq!(reply.entry(1).expect("it was not made").key, a);
    let reply = subject.made(Txn::new().put(&b, b"1".to_vec()).read(&b).read_otherwise(&a)).await;
    assert_eq!(reply.reads.len(), 1, "what was made reads nothing otherwise");

    let reply = subject.made(Txn::new().read(&b)).await;
    assert_eq!(reply.entry(0).unwrap().value, b"1", "a transaction may only read");
    let reply = subject.made(Txn::new().delete(&b).read(&b)).await;
    assert_eq!(reply.entry(0), None);
}

async fn a_listing_is_exact(subject: &StoreSubject) {
    assert!(subject.names(&subject.key("list/")).await.is_empty());
    let inside = ["list/", "list/a", "list/a/b", "list/b", "list/\u{10ffff}z"];
    let outside = ["list", "list.", "list0", "lisu", "list\u{7f}"];
    for name in inside.iter().rev().chain(&outside) {
        subject.made(Txn::new().put(subject.key(name), b"x".to_vec())).await;
    }
    let expected: Vec<_> = inside.iter().map(|name| subject.key(name)).collect();
    assert_eq!(subject.names(&subject.key("list/")).await, expected, "by prefix, in key order");
    let odd = subject.key("list\u{7f}");
    assert_eq!(subject.names(&odd).await, std::slice::from_ref(&odd));
    let deep = subject.key("list/a/");
    assert_eq!(subject.names(&deep).await, [subject.key("list/a/b")]);

    for count in 0..300 {
        let txn = Txn::new().put(subject.key(&format!("many/{count:03}")), vec![b'v'; 100]);
        subject.made(txn).await;
    }
    assert_eq!(subject.names(&subject.key("many/")).await.len(), 300, "a long list is whole");
    let (many, mut after, mut paged) = (subject.key("many/"), None, Vec::new());
    loop {
        let page = subject.store.page(&many, after.as_deref(), 70).await.expect("a page");
        let keys: Vec<String> = page.entries.into_iter().map(|entry| entry.key).collect();
        let is_last = keys.len() < 70;
        after = keys.last().cloned();
        paged.extend(keys);
        if is_last {
            break;
        }
    }
    assert_eq!(paged, subject.names(&many).await, "pages are the listing in pieces");
}

async fn values_are_bytes(subject: &StoreSubject) {
    let key = subject.key("bytes/käse \"x\"/\u{1}");
    for value in [Vec::new(), (0..=255).collect(), vec![0xfe; 600 * 1024]] {
        subject.made(Txn::new().put(&key, value.clone())).await;
        assert!(subject.get(&key).await.unwrap().value == value, "a value comes back as it was");
    }
}

async fn of_many_claims_exactly_one_wins(subject: &StoreSubject) {
    for round in 0..5 {
        let key = subject.key(&format!("claim/{round}"));
        let claims = (0..16).map(|who| {
            let node = if who % 2 == 0 { &subject.store } else { &subject.other };
            let txn = Txn::new()
                .when(&key, Expect::Absent)
                .put(&key, who.to_string().into_bytes())
                .read(&key);
            async move { (who, node.txn(txn).await.expect("a claim is answered")) }
        });
        let replies = join_all(claims).await;
        let winners: Vec<_> = replies.iter().filter(|(_, reply)| reply.committed).collect();
        assert_eq!(winners.len(), 1, "one claim wins");
        let (winner, won) = winners[0];
        let entry = subject.get(&key).await.unwrap();
        assert_eq!(entry.value, winner.to_string().into_bytes());
        assert_eq!(entry.create_revision, won.revision, "its revision is the epoch");
        for (_, reply) in &replies {
            assert_eq!(reply.entry(0), Some(&entry), "who loses sees who won");
        }
    }
}

async fn a_counter_by_compare_loses_no_step(subject: &StoreSubject) {
    let key = subject.key("counter");
    subject.made(Txn::new().put(&key, b"0".to_vec())).await;
    let adders = (0..8).map(|who| {
        let node = if who % 2 == 0 { &subject.store } else { &subject.other };
        let key = &key;
        async move {
            for _ in 0..5 {
                loop {
                    let entry = node.get(key).await.unwrap().unwrap();
                    let count: u32 = String::from_utf8(entry.value).unwrap().parse().unwrap();
                    let txn = Txn::new()
                        .when(key, Expect::ModifiedAt(entry.mod_revision))
                        .put(key, (count + 1).to_string().into_bytes());
                    if node.txn(txn).await.unwrap().committed {
                        break;
                    }
                }
            }
        }
    });
    join_all(adders).await;
    assert_eq!(subject.get(&key).await.unwrap().value, b"40", "no step is lost");
}

async fn a_watch_misses_nothing(subject: &StoreSubject) {
    let (a, b) = (subject.key("watch/a"), subject.key("watch/b"));
    let from = subject.store.list(&subject.key("watch/")).await.unwrap().revision + 1;
    let first = subject.made(Txn::new().put(&a, b"1".to_vec())).await;
    let second = subject.made(Txn::new().put(&a, b"2".to_vec()).put(&b, b"2".to_vec())).await;

    let mut changes =
        subject.other.watch(&subject.key("watch/"), from).await.expect("a watch can be opened");
    let put = |key: &str, value: &[u8], create, modified| {
        Change::Put(Entry {
            key: key.to_owned(),
            value: value.to_vec(),
            create_revision: create,
            mod_revision: modified,
        })
    };
    let (one, two) = (first.revision, second.revision);
    assert_eq!(next(&mut changes).await, put(&a, b"1", one, one), "what was before it came");
    let both = [next(&mut changes).await, next(&mut changes).await];
    assert!(both.contains(&put(&a, b"2", one, two)), "{both:?}");
    assert!(both.contains(&put(&b, b"2", two, two)), "{both:?}");

    for count in 0..50_u32 {
        subject.made(Txn::new().put(&a, count.to_string().into_bytes())).await;
    }
    let removed = subject.made(Txn::new().delete(&a)).await;
    for count in 0..50_u32 {
        match next(&mut changes).await {
            Change::Put(entry) => assert_eq!(entry.value, count.to_string().into_bytes()),
            Change::Deleted { .. } => panic!("a removal came before the writes"),
        }
    }
    assert_eq!(gone(&mut changes, &a).await, removed.revision);
    never("an unexpected change", changes.next()).await;

    let mut late = subject.store.watch(&a, removed.revision).await.unwrap();
    assert_eq!(gone(&mut late, &a).await, removed.revision, "the first revision is seen too");
}

async fn a_watch_keeps_to_its_prefix(subject: &StoreSubject) {
    let (inside, outside) = (subject.key("scope/in/x"), subject.key("scope/out"));
    let from = subject.store.list(&subject.prefix).await.unwrap().revision + 1;
    let mut changes = subject.store.watch(&subject.key("scope/in/"), from).await.unwrap();
    let mut others = subject.store.watch(&subject.key("scope/in/"), from).await.unwrap();
    subject.refused(Txn::new().when(&inside, Expect::Present).put(&inside, b"0".to_vec())).await;
    subject.made(Txn::new().put(&outside, b"1".to_vec()).delete(subject.key("scope/in/no"))).await;
    subject.made(Txn::new().put(&inside, b"2".to_vec())).await;
    for watch in [&mut changes, &mut others] {
        match next(watch).await {
            Change::Put(entry) => {
                assert_eq!((entry.key, entry.value), (inside.clone(), b"2".to_vec()))
            }
            Change::Deleted { key, .. } => panic!("{key} was never there"),
        }
    }
    drop(others);
    subject.made(Txn::new().delete(&inside)).await;
    gone(&mut changes, &inside).await;
}

async fn a_compacted_watch_says_so(subject: &StoreSubject) {
    let Some(compact) = &subject.compact else { return };
    let key = subject.key("compact");
    let old = subject.made(Txn::new().put(&key, b"1".to_vec())).await.revision;
    for _ in 0..3 {
        subject.made(Txn::new().put(&key, b"2".to_vec())).await;
    }
    let new = subject.made(Txn::new().put(&key, b"3".to_vec())).await.revision;
    compact(new).await;

    let first = match subject.store.watch(&key, old).await {
        Err(refusal) => Err(refusal),
        Ok(mut changes) => {
            let first = soon("an answer", changes.next()).await.expect("a watch says why it ends");
            if first.is_err() {
                assert!(changes.next().await.is_none(), "after an error nothing comes");
            }
            first
        }
    };
    match first {
        Err(StoreError::Compacted { asked, oldest }) => {
            assert_eq!(asked, old);
            assert!(oldest > old, "the oldest revision is told");
        }
        other => panic!("a watch cannot begin before the history that is kept: {other:?}"),
    }

    let listing = subject.store.list(&key).await.expect("a look goes on");
    let mut changes = subject.store.watch(&key, listing.revision + 1).await.unwrap();
    let removed = subject.made(Txn::new().delete(&key)).await;
    assert_eq!(gone(&mut changes, &key).await, removed.revision);
}
