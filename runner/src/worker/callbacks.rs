//! Tells whoever asked for it that steps run, and how they ended: from an outbox in the store, which is
//! filled with the record's own writes. No run waits for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use protocol::event::Reason;
use protocol::names;
use protocol::pipeline::Token;
use protocol::time::Millis;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shared;
use super::watchdog::waits;
use super::secrets::to_host;
use crate::ports::{Entry, Expect, Purpose, StoreError, Txn};
use crate::rules::destination;
use crate::rules::callback::{GIVEN_UP_AFTER, News, is_taken, pause};

/// How often somebody looks for what others have left: a worker knows of its own.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// For how long news are one worker's to tell.
const TELLING: Duration = Duration::from_secs(60);
/// So many runs' news are told at once.
const AT_ONCE: usize = 8;

/// Tells what there is to tell.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    // What it waits for is whoever is told.
    let _waits = waits();
    let mut wait = LOOK_EVERY;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.news.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        let told = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            told = tell_all(&shared) => told,
        };
        wait = match told {
            Ok(next) => next.unwrap_or(LOOK_EVERY).min(LOOK_EVERY),
            Err(cause) => {
                warn!(%cause, "what is to be told cannot be read");
                Duration::from_secs(5)
            }
        };
    }
}

/// Tells what is due; after which time the next of it is.
async fn tell_all(shared: &Shared) -> Result<Option<Duration>, StoreError> {
    let listing = shared.ports.store.list(names::CALLBACKS).await?;
    // Of one step in their order; of others whoever is slow holds up nobody.
    let mut by_step: Vec<Vec<Entry>> = Vec::new();
    for entry in listing.entries {
        let step = |entry: &Entry| entry.key.rsplit_once('-').map(|(step, _)| step.to_owned());
        match by_step.last_mut() {
            Some(last) if last.last().is_some_and(|before| step(before) == step(&entry)) => {
                last.push(entry);
            }
            Some(_) | None => by_step.push(vec![entry]),
        }
    }
    let told = futures::stream::iter(by_step).map(|entries| tell_in_order(shared, entries));
    let next: Vec<Option<Millis>> = told.buffer_unordered(AT_ONCE).collect().await;
    let now = shared.ports.host.now();
    let after = |due: Millis| Duration::from_millis(u64::try_from(due.0 - now.0).unwrap_or(0));
    Ok(next.into_iter().flatten().map(after).min())
}

/// Tells the news of one step; when those are due that could not be told.
async fn tell_in_order(shared: &Shared, entries: Vec<Entry>) -> Option<Millis> {
    for entry in entries {
        match tell(shared, &entry).await {
            Ok(None) => {}
            Ok(Some(due)) => return Some(due),
            Err(cause) => {
                warn!(%cause, "{} waits", entry.key);
                return Some(later(shared, pause(1)));
            }
        }
    }
    None
}

fn later(shared: &Shared, after: Duration) -> Millis {
    Millis(shared.ports.host.now().0 + i64::try_from(after.as_millis()).unwrap_or(i64::MAX))
}

/// Tells one of them. `Some`: it is due then.
async fn tell(shared: &Shared, entry: &Entry) -> Result<Option<Millis>, StoreError> {
    let store = &shared.ports.store;
    let held = |txn: Txn, revision| txn.when(entry.key.clone(), Expect::ModifiedAt(revision));
    let Ok(mut news) = serde_json::from_slice::<News>(&entry.value) else {
        warn!("{} is unreadable, and is removed", entry.key);
        drop(store.txn(held(Txn::new(), entry.mod_revision).delete(entry.key.clone())).await?);
        return Ok(None);
    };
    if news.due > shared.ports.host.now().0 {
        return Ok(Some(Millis(news.due)));
    }
    // Nobody else tells it meanwhile.
    news.due = later(shared, TELLING).0;
    news.tries = news.tries.saturating_add(1);
    let txn = held(Txn::new(), entry.mod_revision).put(entry.key.clone(), value_of(&news));
    let reply = store.txn(txn).await?;
    if !reply.committed {
        return Ok(None);
    }
    let revision = reply.revision;
    let Err(why) = post(shared, entry, &news).await else {
        drop(store.txn(held(Txn::new(), revision).delete(entry.key.clone())).await?);
        return Ok(None);
    };
    let what = entry.key.strip_prefix(names::CALLBACKS).unwrap_or_default();
    let age = shared.ports.host.now().0 - news.since;
    if u128::try_from(age).unwrap_or(0) >= GIVEN_UP_AFTER.as_millis() {
        drop(store.txn(held(Txn::new(), revision).delete(entry.key.clone())).await?);
        let text = format!("callback {what} is given up after {} tries: {why}", news.tries);
        warn!("{text}");
        shared.tell(shared.event(Reason::CallbackDropped, text)).await;
        return Ok(None);
    }
    warn!(tries = news.tries, "callback {what} was not taken, and is tried again: {why}");
    news.due = later(shared, pause(news.tries)).0;
    drop(store.txn(held(Txn::new(), revision).put(entry.key.clone(), value_of(&news))).await?);
    Ok(Some(Millis(news.due)))
}

/// The value of an entry of the outbox.
pub(super) fn value_of(news: &News) -> Vec<u8> {
    // A struct of texts and numbers always serialises.
    serde_json::to_vec(news).unwrap_or_default()
}

async fn post(shared: &Shared, entry: &Entry, news: &News) -> Result<(), String> {
    let secret = match &news.secret {
        None => None,
        Some(Token::Literal(secret)) => Some(secret.clone()).filter(|secret| !secret.is_empty()),
        Some(Token::Named { name }) => {
            let (group, pipeline) = news.pipeline.clone();
            let to = to_host(destination::of_url(&news.url));
            let purpose = Purpose { group, pipeline, to };
            let secret = shared.ports.secrets.get(name, &purpose).await;
            let secret = secret.map_err(|cause| cause.to_string())?;
            let secret = secret.ok_or_else(|| format!("there is no secret {name} here"))?;
            let text = String::from_utf8(secret.expose().to_vec());
            Some(text.map_err(|_no_text| format!("secret {name} is no text"))?)
        }
    };
    let body = Bytes::from(news.body.to_string());
    let id = entry.key.replace('/', "_");
    let posted = shared.ports.transfer.post(&news.url, secret.as_deref(), &id, body).await;
    match posted {
        Ok(status) if is_taken(status) => {
            info!(status, "callback {} is told", entry.key);
            Ok(())
        }
        Ok(status) => Err(format!("it was answered with {status}")),
        Err(cause) => Err(cause.to_string()),
    }
}
