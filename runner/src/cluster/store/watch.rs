//! Watches that survive reconnects.

use std::collections::VecDeque;

use etcd_client::{Client, EventType, WatchOptions, WatchResponse, WatchStream};
use futures::stream::{self, StreamExt as _};
use tracing::debug;

use super::client::{Etcd, LARGEST_ANSWER};
use super::convert;
use super::errors::{Fault, of_cancel};
use super::members::{DEADLINE, in_time};
use crate::cluster::retry::reconnect_pauses;
use crate::ports::{Change, Changes, Pauses, StoreError};

/// A watch that resumes after the last revision it has seen.
struct Watching {
    etcd: Etcd,
    prefix: String,
    /// The next revision to receive. etcd sends all changes of a revision in one message.
    next: i64,
    stream: Option<WatchStream>,
    seen: VecDeque<Change>,
    pauses: Pauses,
    over: bool,
}

pub(super) async fn open(etcd: Etcd, prefix: &str, from: i64) -> Result<Changes, StoreError> {
    let mut watching = Watching {
        etcd,
        prefix: prefix.to_owned(),
        next: from.max(1),
        stream: None,
        seen: VecDeque::new(),
        pauses: reconnect_pauses(),
        over: false,
    };
    let mut opened = watching.reopen().await;
    if matches!(opened, Err(Fault::Unreachable(_) | Fault::Unsent(_))) {
        opened = watching.reopen().await;
    }
    opened.map_err(|fault| watching.store_error(fault))?;
    Ok(stream::unfold(watching, step).boxed())
}

async fn step(mut watching: Watching) -> Option<(Result<Change, StoreError>, Watching)> {
    loop {
        if let Some(change) = watching.seen.pop_front() {
            return Some((Ok(change), watching));
        }
        if watching.over {
            return None;
        }
        let Err(fault) = watching.advance().await else { continue };
        watching.stream = None;
        let error = watching.store_error(fault);
        if error.retryable() {
            debug!(%error, prefix = watching.prefix, "a watch is opened again");
            watching.pauses.wait().await;
        } else {
            watching.over = true;
            return Some((Err(error), watching));
        }
    }
}

impl Watching {
    async fn advance(&mut self) -> Result<(), Fault> {
        let Some(stream) = &mut self.stream else { return self.reopen().await };
        match stream.message().await.map_err(Fault::from)? {
            Some(message) => self.take(&message),
            None => Err(Fault::Unreachable("it ended the watch".to_owned())),
        }
    }

    /// Opens the watch from the next revision and waits for its confirmation. If the member does
    /// not answer, switches to the next one.
    async fn reopen(&mut self) -> Result<(), Fault> {
        let (index, client) = self.etcd.members.current();
        let opened = match self.etcd.members.log_in(&client).await {
            Ok(()) => self.open_once(&client).await,
            Err(fault) => Err(fault),
        };
        if matches!(opened, Err(Fault::Unreachable(_) | Fault::Unsent(_))) {
            self.etcd.members.switch_from(index);
        }
        opened
    }

    async fn open_once(&mut self, client: &Client) -> Result<(), Fault> {
        let options = WatchOptions::new()
            .with_range(convert::end_of(&self.prefix))
            .with_start_revision(self.next)
            // Advances the revision of a quiet watch, so that it is not overtaken by a compaction.
            .with_progress_notify();
        let mut client = client.watch_client().max_decoding_message_size(LARGEST_ANSWER);
        let prefix = self.prefix.clone();
        let opening = async {
            let mut stream = client.watch(prefix, Some(options)).await.map_err(Fault::from)?;
            let first = stream.message().await.map_err(Fault::from)?;
            Ok((stream, first))
        };
        let (stream, first) = in_time(DEADLINE, opening).await?;
        let first = first.ok_or_else(|| Fault::Unreachable("it ended the watch".to_owned()))?;
        self.take(&first)?;
        self.stream = Some(stream);
        self.pauses.reset();
        Ok(())
    }

    fn take(&mut self, message: &WatchResponse) -> Result<(), Fault> {
        if message.compact_revision() > 0 {
            return Err(Fault::Compacted { oldest: message.compact_revision() });
        }
        if message.canceled() {
            return Err(of_cancel(message.cancel_reason()));
        }
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = kv.mod_revision();
            let foreign = &self.etcd.foreign;
            let change = match event.event_type() {
                EventType::Put => foreign.entry(kv).map(Change::Put),
                EventType::Delete => foreign.key(kv).map(|key| Change::Deleted { key, revision }),
            };
            self.seen.extend(change);
            self.next = self.next.max(revision.saturating_add(1));
        }
        // Nothing changed up to this revision. The message that confirms the watch does not count:
        // its revision may be later than changes that the watch has yet to deliver.
        if message.events().is_empty() && !message.created() {
            let at = message.header().map_or(0, |header| header.revision());
            self.next = self.next.max(at.saturating_add(1));
        }
        Ok(())
    }

    fn store_error(&self, fault: Fault) -> StoreError {
        fault.into_store_error(&self.etcd.at, None, self.next)
    }
}
