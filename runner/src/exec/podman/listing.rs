//! Listings of containers and images by their labels.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::RunId;
use protocol::names;
use serde::Deserialize;
use tokio::time::sleep;

use super::call::{EngineCall, Fault, saw_a_removal};
use super::create;
use super::http::Http;

/// How often a listing of images is retried.
const LISTINGS: u64 = 20;

/// A container or an image in a listing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Labelled {
    pub(super) id: String,
    #[serde(default)]
    pub(super) labels: Option<HashMap<String, String>>,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    /// Only in a listing of containers.
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    state: Option<String>,
}

/// Names of containers that an engine was killed while creating. They occupy its storage and hold
/// their image, but the engine does not list them.
#[derive(Debug, Default)]
pub(super) struct UnlistedContainers(Mutex<BTreeMap<RunId, Vec<String>>>);

impl UnlistedContainers {
    pub(super) fn seen(&self, found: BTreeMap<RunId, Vec<String>>) {
        *self.0.lock() = found;
    }

    pub(super) fn take(&self, run: &RunId) -> Vec<String> {
        let mut ghosts = self.0.lock();
        ghosts.remove(run).unwrap_or_default()
    }
}

impl Labelled {
    pub(super) fn run(&self) -> Option<RunId> {
        self.label(names::LABEL_RUN)?.parse().ok()
    }

    /// The run and the name of a container that belongs to [`UnlistedContainers`].
    pub(super) fn ghost(&self) -> Option<(RunId, &str)> {
        let name =
            self.names.as_ref()?.first().filter(|_| self.state.as_deref() == Some("storage"))?;
        Some((create::run_of(name)?, name))
    }

    pub(super) fn label(&self, name: &str) -> Option<String> {
        self.labels.as_ref()?.get(name).cloned()
    }
}

/// Requests a listing. The engine inspects every object for it, and fails if one is removed
/// meanwhile, so the call is retried.
pub(super) async fn listed(http: &Arc<Http>, ask: EngineCall) -> Result<Vec<Labelled>, Fault> {
    let mut tries = 0;
    loop {
        match http.call(ask.clone()).await?.good() {
            Ok(reply) => return reply.json(),
            Err(fault)
                if (saw_a_removal(fault.refusal()) || fault.is_gone()) && tries < LISTINGS =>
            {
                tries += 1;
            }
            Err(fault) => return Err(fault),
        }
        sleep(Duration::from_millis(50 * tries)).await;
    }
}
