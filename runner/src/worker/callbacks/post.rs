//! Posts one outbox entry.

use std::time::Duration;

use bytes::Bytes;
use protocol::event::Reason;
use protocol::names;
use protocol::pipeline::Token;
use tracing::{info, warn};

use crate::ports::{Entry, Expect, Purpose, StoreError, TransferError, Txn};
use crate::rules::callback::{GIVEN_UP_AFTER, Notification, is_taken, pause};
use crate::rules::destination;
use crate::rules::outbox::Outcome;
use crate::worker::shared::Shared;
use crate::worker::watchdog::Heartbeat;

/// How long an entry is reserved for the worker that posts it.
const TELLING: Duration = Duration::from_secs(60);

/// Returns the stored form of an outbox entry.
pub(in crate::worker) fn value_of(news: &Notification) -> Vec<u8> {
    // Serializing a struct of texts and numbers cannot fail.
    serde_json::to_vec(news).unwrap_or_default()
}

fn later(shared: &Shared, after: Duration) -> i64 {
    shared.ports.host.now().0 + i64::try_from(after.as_millis()).unwrap_or(i64::MAX)
}

fn held(txn: Txn, key: &str, revision: i64) -> Txn {
    txn.when(key, Expect::ModifiedAt(revision))
}

/// Returns the key of the step's earlier entry.
fn before(key: &str) -> Option<String> {
    key.strip_suffix("-1").map(|step| format!("{step}-0"))
}

/// Posts an entry if it is due. Returns the outcome, and an earlier entry to be posted first.
pub(super) async fn post_if_due(
    shared: &Shared,
    heartbeat: &Heartbeat,
    key: &str,
) -> Result<(Outcome, Option<Entry>), StoreError> {
    let store = &shared.ports.store;
    let Some(entry) = store.get(key).await? else { return Ok((Outcome::Gone, None)) };
    let Ok(mut news) = serde_json::from_slice::<Notification>(&entry.value) else {
        warn!("{key} is unreadable, and is removed");
        drop(store.txn(held(Txn::new(), key, entry.mod_revision).delete(key)).await?);
        return Ok((Outcome::Gone, None));
    };
    if news.due > shared.ports.host.now().0 {
        return Ok((Outcome::Unsent(news.due), None));
    }
    // Reserve the entry, so that no other worker posts it meanwhile.
    news.due = later(shared, TELLING);
    news.tries = news.tries.saturating_add(1);
    let mut txn = held(Txn::new(), key, entry.mod_revision).put(key, value_of(&news));
    if let Some(before) = before(key) {
        txn = txn.when(before.clone(), Expect::Absent).read_otherwise(before);
    }
    let reply = store.txn(txn).await?;
    if !reply.committed {
        return Ok(match reply.entry(0) {
            Some(before) => (Outcome::Unsent(later(shared, pause(1))), Some(before.clone())),
            // Another worker posts it, or has posted it.
            None => (Outcome::Gone, None),
        });
    }
    let revision = reply.revision;
    let (why, is_silent) = match post(shared, key, &news).await {
        PostOutcome::Taken => {
            drop(store.txn(held(Txn::new(), key, revision).delete(key)).await?);
            return Ok((Outcome::Answered(None), None));
        }
        PostOutcome::NotTaken { why, is_silent } => (why, is_silent),
    };
    let outcome = |due| if is_silent { Outcome::Silent(due) } else { Outcome::Answered(due) };
    let age = shared.ports.host.now().0 - news.since;
    if u128::try_from(age).unwrap_or(0) >= GIVEN_UP_AFTER.as_millis() {
        let entry = Entry { mod_revision: revision, ..entry };
        remove_exhausted(shared, heartbeat, &entry, &news, &why).await?;
        return Ok((outcome(None), None));
    }
    warn!(tries = news.tries, "{}", failed(&key_name(key), &news, &why));
    news.due = later(shared, pause(news.tries));
    drop(store.txn(held(Txn::new(), key, revision).put(key, value_of(&news))).await?);
    Ok((outcome(Some(news.due)), None))
}

/// Removes an entry whose retries are exhausted.
pub(super) async fn remove_exhausted(
    shared: &Shared,
    heartbeat: &Heartbeat,
    entry: &Entry,
    news: &Notification,
    why: &str,
) -> Result<Outcome, StoreError> {
    let key = &entry.key;
    let txn = held(Txn::new(), key, entry.mod_revision).delete(key.clone());
    if shared.ports.store.txn(txn).await?.committed {
        let what = key_name(key);
        let text = match news.receiver() {
            Some(url) => {
                format!("callback {what} to {url} is given up after {} tries: {why}", news.tries)
            }
            None => format!("callback {what} is given up after {} tries: {why}", news.tries),
        };
        warn!("{text}");
        shared.publish(heartbeat, shared.event(Reason::CallbackDropped, text)).await;
    }
    Ok(Outcome::Gone)
}

/// The name of a callback: its run, step and stage.
fn key_name(key: &str) -> String {
    key.strip_prefix(names::CALLBACKS).unwrap_or_default().to_owned()
}

/// The message about a callback that was not delivered, and is tried again.
fn failed(what: &str, news: &Notification, why: &str) -> String {
    let hours = GIVEN_UP_AFTER.as_secs() / 3600;
    let to = news.receiver().map(|url| format!(" to {url}")).unwrap_or_default();
    format!("callback {what}{to} failed: {why}; it will be retried for {hours} h")
}

/// The result of a post.
enum PostOutcome {
    Taken,
    NotTaken {
        why: String,
        /// Whether the receiver did not answer at all.
        is_silent: bool,
    },
}

async fn post(shared: &Shared, key: &str, news: &Notification) -> PostOutcome {
    let secret = match secret(shared, news).await {
        Ok(secret) => secret,
        Err(why) => return PostOutcome::NotTaken { why, is_silent: false },
    };
    let body = Bytes::from(news.body.to_string());
    let id = key.replace('/', "_");
    let posted = shared.ports.transfer.post(&news.url, secret.as_deref(), &id, body).await;
    match posted {
        Ok(status) if is_taken(status) => {
            info!(status, "callback {key} was delivered");
            PostOutcome::Taken
        }
        Ok(status) => {
            let why = format!("it was answered with {status}");
            PostOutcome::NotTaken { why, is_silent: false }
        }
        Err(cause) => {
            let is_silent = matches!(cause, TransferError::Unreachable { .. });
            PostOutcome::NotTaken { why: cause.to_string(), is_silent }
        }
    }
}

async fn secret(shared: &Shared, news: &Notification) -> Result<Option<String>, String> {
    let name = match &news.secret {
        None => return Ok(None),
        Some(Token::Literal(secret)) => {
            return Ok(Some(secret.clone()).filter(|secret| !secret.is_empty()));
        }
        Some(Token::Named { name }) => name,
    };
    let (group, pipeline) = news.pipeline.clone();
    let to = destination::of_url(&news.url).into();
    let purpose = Purpose { group, pipeline, trusted: news.trusted, to };
    let secret = shared.ports.secrets.get(name, &purpose).await;
    let secret = secret.map_err(|cause| cause.to_string())?;
    let secret = secret.ok_or_else(|| format!("the worker has no secret {name}"))?;
    let text = String::from_utf8(secret.expose().to_vec());
    Ok(Some(text.map_err(|_no_text| format!("secret {name} is not text"))?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_callback_that_failed_names_its_receiver_and_how_long_it_is_retried() {
        let news = |url: &str| Notification {
            pipeline: ("g".into(), "n".into()),
            trusted: false,
            url: url.into(),
            secret: None,
            body: json!({}),
            tries: 1,
            since: 0,
            due: 0,
        };
        assert_eq!(
            failed(
                "r-1/a/ended",
                &news("http://u:p@h:8080/hook?token=x"),
                "it was answered with 500"
            ),
            "callback r-1/a/ended to http://h:8080/hook failed: it was answered with 500; it will be retried for 24 h"
        );
        assert!(
            failed("r-1/a/ended", &news("${x}"), "no")
                .starts_with("callback r-1/a/ended failed: no;")
        );
    }
}
