//! The projection recovers from what a store can do to it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::StreamExt as _;

use super::*;
use crate::ports::{Changes, Entry, Granted, LeaseId, Listing, StoreError, TxnReply};

/// A store whose first watches end, and whose reads can fail.
struct Unreliable {
    inner: Arc<dyn Store>,
    /// Watches that are still to end as compacted.
    compacted: AtomicUsize,
    is_away: AtomicBool,
}

impl Unreliable {
    fn check(&self) -> Result<(), StoreError> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(StoreError::Unreachable { at: "etcd".into(), cause: "no route".into() });
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Unreliable {
    async fn identity(&self) -> Result<String, StoreError> {
        self.inner.identity().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.check()?;
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.check()?;
        self.inner.list(prefix).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        self.inner.txn(txn).await
    }

    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(lease).await
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError> {
        let decrement = |left: usize| left.checked_sub(1);
        let left = self.compacted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, decrement);
        if left.is_ok() {
            let asked = from_revision;
            let error = StoreError::Compacted { asked, oldest: asked + 1 };
            return Ok(futures::stream::iter([Err(error)]).boxed());
        }
        self.inner.watch(prefix, from_revision).await
    }
}

fn unreliable(embedded: &Embedded, compacted: usize, is_away: bool) -> Arc<Unreliable> {
    Arc::new(Unreliable {
        inner: embedded.store(),
        compacted: AtomicUsize::new(compacted),
        is_away: AtomicBool::new(is_away),
    })
}

#[tokio::test]
async fn a_compacted_watch_is_followed_by_another_read() {
    let embedded = embedded().await;
    let store = unreliable(&embedded, 12, false);
    let fleet = Fleet::start(embedded, store).await;
    fleet.projection.ready().await;
    fleet.add_run(&record("r-1", "running", 1)).await;
    fleet.add_run(&record("r-2", "passed", 2)).await;
    let list = fleet.get("/api/v1/runs").await.is(200);
    assert_eq!(run_ids(&list), ["r-2", "r-1"]);
}

#[tokio::test]
async fn a_node_answers_once_the_store_does() {
    let embedded = embedded().await;
    let store = unreliable(&embedded, 0, true);
    let reads: Arc<dyn Store> = Arc::<Unreliable>::clone(&store);
    let fleet = Fleet::start(embedded, reads).await;
    let refused = fleet.get("/api/v1/runs").await;
    refused.problem(503);
    store.is_away.store(false, Ordering::SeqCst);
    fleet.projection.ready().await;
    fleet.get("/api/v1/runs").await.is(200);
}

#[tokio::test]
async fn more_runs_than_a_page_of_the_store_are_all_read() {
    let embedded = embedded().await;
    for number in 0..300 {
        let record = record(&format!("r-{number:03}"), "passed", number % 60);
        let run: protocol::id::RunId = record["run-id"].as_str().unwrap().parse().unwrap();
        let put = Txn::new().put(names::run_key(&run), record.to_string().into_bytes());
        assert!(embedded.store().txn(put).await.unwrap().committed);
    }
    let fleet = Fleet::over(embedded).await;
    assert_eq!(fleet.projection.run_count().unwrap(), 300);
    let gone = Txn::new().delete(names::run_key(&"r-007".parse().unwrap()));
    assert!(fleet.embedded.store().txn(gone).await.unwrap().committed);
    fleet.projection.run_until(&"r-007".parse().unwrap(), |run| run.is_none()).await;
    let mut found = 0;
    let mut path = "/api/v1/runs?limit=70".to_owned();
    loop {
        let page = fleet.get(&path).await.is(200);
        found += run_ids(&page).len();
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/api/v1/runs?limit=70&cursor={next}");
    }
    assert_eq!(found, 299);
}
