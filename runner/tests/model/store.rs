//! The transactions of the store: their conditions and their changes.

use super::LeftOutRule;
use super::world::{
    Lease, MAX_LOSSES, Owner, Revision, Status, Stored, TxnPurpose, Violation, World, Write,
};

impl World {
    /// Applies a transaction if its conditions hold. Returns whether they did.
    pub(crate) fn land(&mut self, write: &Write, flaw: LeftOutRule) -> bool {
        if !self.conditions_hold(write, flaw) {
            return false;
        }
        self.store.revision += 1;
        let revision = self.store.revision;
        if write.kind.is_claim() {
            self.note_claim(write, revision);
            self.store.owner = Some(Owner { lease: write.lease, created: revision });
            self.store.open = true;
            self.store.seen = true;
        } else {
            self.note_write(write);
        }
        self.store.record = Some(Stored { record: write.record, modified: revision });
        match write.kind {
            TxnPurpose::Claim { .. } | TxnPurpose::ClaimOrphan { .. } | TxnPurpose::Save => {}
            TxnPurpose::End if write.record.status == Status::Stopped => self.store.stop = false,
            TxnPurpose::End => {}
            TxnPurpose::HandOver => self.store.owner = None,
            TxnPurpose::LetGo => {
                self.store.owner = None;
                self.store.open = false;
                self.store.stop = false;
            }
        }
        true
    }

    fn conditions_hold(&self, write: &Write, flaw: LeftOutRule) -> bool {
        let store = &self.store;
        let unchanged = store.record.map(|stored| stored.modified) == write.modified;
        match write.kind {
            TxnPurpose::Claim { stopped } => {
                let claims_known = flaw == LeftOutRule::ClaimsWhatIsKnown;
                let unrecorded = unchanged || claims_known;
                let unseen =
                    !store.seen || claims_known || flaw == LeftOutRule::ClaimsWhatWasRemoved;
                let unowned = store.owner.is_none();
                unowned
                    && unrecorded
                    && unseen
                    && (stopped || !store.stop)
                    && self.is_writable_under(write.lease)
            }
            TxnPurpose::ClaimOrphan { go_on } => {
                let open = store.open || flaw == LeftOutRule::EndsWhatHasEnded;
                let is_unchanged_orphan = store.owner.is_none() && unchanged && open;
                (is_unchanged_orphan || flaw == LeftOutRule::TakesWhatIsOwned)
                    && !(go_on && store.stop)
                    && self.is_writable_under(write.lease)
            }
            TxnPurpose::Save | TxnPurpose::End | TxnPurpose::HandOver | TxnPurpose::LetGo => {
                let fenced = write.epoch.is_some_and(|epoch| self.owns(epoch));
                let requires_no_stop = write.kind == TxnPurpose::End
                    && write.record.status != Status::Stopped
                    && flaw != LeftOutRule::EndsDespiteAStop;
                (fenced || flaw == LeftOutRule::SavesAreNotFenced)
                    && (unchanged || flaw == LeftOutRule::SavesOverAnything)
                    && !(requires_no_stop && store.stop)
            }
        }
    }

    /// Whether a key can be written under a lease. The lease of an earlier life is still valid
    /// here: `end_lease` drops the late claim of a lease that ends.
    fn is_writable_under(&self, lease: Lease) -> bool {
        let worker = &self.workers[lease.worker];
        worker.life != lease.life || !worker.lease_gone
    }

    /// Adds a claim to the history. Checks that epochs grow and that the run has no owner.
    fn note_claim(&mut self, write: &Write, revision: Revision) {
        if revision <= self.history.last_epoch {
            self.slip(Violation::EpochsShrink);
        }
        if self.store.owner.is_some() {
            self.slip(Violation::TwoOwners);
        }
        self.history.last_epoch = revision;
        self.history.losses = self.history.losses.max(write.record.losses);
        self.check_change(write);
        for worker in &mut self.workers {
            worker.own_lost = false;
        }
    }

    /// Adds an owner's write to the history. Checks the fence, the limit of losses and the stop.
    fn note_write(&mut self, write: &Write) {
        if !write.epoch.is_some_and(|epoch| self.owns(epoch)) {
            self.slip(Violation::ForeignWrite);
        }
        match write.kind {
            TxnPurpose::Save
                if write.record.started.is_some()
                    && write.record.losses > MAX_LOSSES
                    && write.record.cause.is_none() =>
            {
                self.slip(Violation::BegunAfterTooManyLosses);
            }
            TxnPurpose::End => {
                self.history.endings += 1;
                if self.store.stop && write.record.status != Status::Stopped {
                    self.slip(Violation::StopIgnored);
                }
            }
            TxnPurpose::HandOver => self.history.handed_over = true,
            TxnPurpose::Claim { .. }
            | TxnPurpose::ClaimOrphan { .. }
            | TxnPurpose::Save
            | TxnPurpose::LetGo => {}
        }
        self.check_change(write);
    }

    /// Checks that an ended run keeps its status, and that a recorded cause is kept until the run
    /// ends with it. Only a stop overrides a cause.
    fn check_change(&mut self, write: &Write) {
        let Some(before) = self.store.record.map(|stored| stored.record) else { return };
        let (old, new) = (before.status, write.record.status);
        if old.is_ended() && old != new {
            self.slip(Violation::EndedRecordChanged);
        }
        let keeps_cause = |cause| match new.is_ended() {
            true => new == cause || new == Status::Stopped,
            false => write.record.cause == Some(cause),
        };
        if !old.is_ended() && !before.cause.is_none_or(keeps_cause) {
            self.slip(Violation::CauseIgnored);
        }
    }

    /// Ends a lease: deletes its keys and rejects later writes under it.
    pub(crate) fn end_lease(&mut self, lease: Lease) {
        if self.store.owner.is_some_and(|owner| owner.lease == lease) {
            self.store.owner = None;
            self.store.revision += 1;
        }
        if self.late.is_some_and(|late| late.kind.is_claim() && late.lease == lease) {
            self.late = None;
        }
        let worker = &mut self.workers[lease.worker];
        if worker.life == lease.life {
            worker.lease_gone = true;
        }
    }
}
