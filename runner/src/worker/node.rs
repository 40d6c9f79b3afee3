//! Publishes that this worker exists, and its state.

use std::sync::Arc;

use protocol::names;
use protocol::run::{NodeEntry, NodeState};
use tracing::warn;

use super::lease::Current;
use super::records::json;
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::Txn;

/// Updates the node's entry under the current lease, as long as the worker runs.
pub(super) async fn refresh(shared: Arc<Shared>, heartbeat: Heartbeat, mut lease: Current) {
    loop {
        let held = {
            let _waits = heartbeat.waits();
            match lease.wait_for(Option::is_some).await {
                Ok(held) => held.clone(),
                Err(_) => return,
            }
        };
        let Some(held) = held else { continue };
        let (room, writes) = (shared.room.changes(), shared.writes.changes());
        let entry = entry(&shared);
        match json(&entry) {
            Ok(value) => {
                let key = names::node_key(&shared.options.node);
                let txn = Txn::new().put_leased(key, value, held.lease);
                if let Err(cause) = shared.ports.store.txn(txn).await
                    && !shared.writes.note(&cause)
                {
                    warn!(%cause, "the node's entry was not refreshed");
                }
            }
            Err(cause) => warn!(%cause, "the node's entry was not refreshed"),
        }
        let _waits = heartbeat.waits();
        tokio::select! {
            biased;
            () = tokio::time::sleep(shared.options.node_refresh) => {}
            () = held.lost.cancelled() => {}
            () = shared.draining_once() => {}
            () = room => {}
            () = writes => {}
        }
    }
}

fn entry(shared: &Shared) -> NodeEntry {
    let host = &shared.ports.host;
    let draining = shared.draining.is_cancelled();
    NodeEntry {
        host: host.name(),
        pid: std::process::id(),
        version: shared.options.version.clone(),
        state: if draining { NodeState::Draining } else { NodeState::Ready },
        slots: u32::try_from(shared.options.slots).unwrap_or(u32::MAX),
        runs: shared.roster.ids(),
        executors: shared.options.executors.iter().map(|it| it.as_str().to_owned()).collect(),
        engine: shared.engine.id.clone(),
        cpu: host.cpu(),
        memory: host.memory(),
        disk: shared.room.entry(),
        engine_away: shared.room.is_engine_away(),
        writes_refused: shared.writes.refusal(),
        paused: shared.room.obstacle(),
        started_at: shared.started_at.into(),
    }
}
