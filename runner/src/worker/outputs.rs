//! Removes the outputs of runs whose records are gone.
//!
//! This includes everything that is stored among the outputs of a run, such as an archive of its
//! log.

use protocol::id::RunId;
use tracing::{info, warn};

use super::records::{RunKey, RunTxn as _};
use crate::ports::{Expect, Outputs, Store, StoreError, Txn};

/// How many records are looked up at once.
const AT_ONCE: usize = 64;

/// Removes the outputs that are no longer needed, once. `outputs`: the output store, if there is
/// one.
pub(super) async fn sweep(store: &dyn Store, outputs: Option<&dyn Outputs>) {
    let Some(outputs) = outputs else { return };
    let runs = match outputs.removable_runs().await {
        Ok(runs) => runs,
        Err(cause) => return warn!(%cause, "outputs of removed runs stay"),
    };
    for some in runs.chunks(AT_ONCE) {
        let forgotten = match without_record(store, some).await {
            Ok(forgotten) => forgotten,
            Err(cause) => return warn!(%cause, "outputs of removed runs stay"),
        };
        for run in forgotten {
            match outputs.remove(run).await {
                Ok(()) => info!(run.id = %run, "the outputs of run {run} are removed"),
                Err(cause) => warn!(run.id = %run, %cause, "outputs of run {run} stay"),
            }
        }
    }
}

/// Returns those of the runs that have no record. Reads no record, because each can have half a
/// megabyte.
async fn without_record<'r>(
    store: &dyn Store,
    runs: &'r [RunId],
) -> Result<Vec<&'r RunId>, StoreError> {
    let demand = |txn: Txn, run: &RunId| txn.when(RunKey::Record.of(run), Expect::Present);
    if store.txn(runs.iter().fold(Txn::new(), demand)).await?.committed {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for run in runs {
        // The outputs of an open run stay, whatever happened to its record.
        let gone = Txn::new().require_absent(run, RunKey::Record).require_absent(run, RunKey::Open);
        if store.txn(gone).await?.committed {
            found.push(run);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use parking_lot::Mutex;
    use protocol::names;
    use protocol::pipeline::Selection;

    use super::*;
    use crate::ports::{ArchiveMatch, ByteStream, KeptOutputs, TransferError};
    use crate::worker::fakes::MemoryStore;

    /// A store with the outputs of these runs, one of which cannot be removed.
    struct Kept {
        runs: Mutex<Vec<RunId>>,
        stuck: RunId,
    }

    #[async_trait]
    impl Outputs for Kept {
        fn name(&self) -> String {
            "kept".into()
        }

        async fn keep(
            &self,
            _kept: &mut KeptOutputs,
            _selection: &Selection,
            _at: &str,
            _tar: ByteStream,
        ) -> Result<ArchiveMatch, TransferError> {
            Ok(ArchiveMatch::default())
        }

        async fn removable_runs(&self) -> Result<Vec<RunId>, TransferError> {
            Ok(self.runs.lock().clone())
        }

        async fn remove(&self, run: &RunId) -> Result<(), TransferError> {
            if *run == self.stuck {
                let (what, store) = (run.to_string(), self.name());
                return Err(TransferError::Removal { what, store, cause: "stuck".into() });
            }
            self.runs.lock().retain(|kept| kept != run);
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_outputs_of_runs_without_a_record_are_removed() {
        let runs: Vec<RunId> = (0..200).map(|n| format!("r-{n}").parse().unwrap()).collect();
        let has_record = |n: usize| !(100..105).contains(&n);
        let store = MemoryStore::default();
        for (_, run) in runs.iter().enumerate().filter(|(n, _)| has_record(*n)) {
            let record = Txn::new().put(names::run_key(run), b"{}".to_vec());
            assert!(store.txn(record).await.unwrap().committed);
        }
        let outputs = Kept { runs: Mutex::new(runs.clone()), stuck: runs[101].clone() };
        sweep(&store, Some(&outputs)).await;
        let expected: Vec<RunId> = runs
            .iter()
            .enumerate()
            .filter(|(n, run)| has_record(*n) || **run == outputs.stuck)
            .map(|(_, run)| run.clone())
            .collect();
        assert_eq!(*outputs.runs.lock(), expected);
    }
}
