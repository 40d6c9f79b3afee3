//! The store: whether the conditions of a transaction hold, and what it changes.

use super::LeftOutRule;
use super::world::{
    Lease, MAX_LOSSES, Owner, Revision, Status, Stored, TxnPurpose, Violation, World, Write,
};

impl World {
    /// Applies a transaction if its conditions hold. Returns whether they did.
    pub(crate) fn land(&mut self, write: &Write, flaw: LeftOutRule) -> bool {
        if !self.demands_hold(write, flaw) {
            return false;
        }
        self.store.revision += 1;
        let now = self.store.revision;
        if write.kind.is_claim() {
            self.note_claim(write, now);
            self.store.owner = Some(Owner { lease: write.lease, created: now });
            self.store.open = true;
            self.store.seen = true;
        } else {
            self.note_write(write);
        }
        self.store.record = Some(Stored { record: write.record, modified: now });
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

    fn demands_hold(&self, write: &Write, flaw: LeftOutRule) -> bool {
        let store = &self.store;
        let unchanged = store.record.map(|stored| stored.modified) == write.modified;
        match write.kind {
            TxnPurpose::Claim { stopped } => {
                let known = flaw == LeftOutRule::ClaimsWhatIsKnown;
                let unrecorded = unchanged || known;
                let unseen = !store.seen || known || flaw == LeftOutRule::ClaimsWhatWasRemoved;
                let unowned = store.owner.is_none();
                unowned
                    && unrecorded
                    && unseen
                    && (stopped || !store.stop)
                    && self.stands(write.lease)
            }
            TxnPurpose::ClaimOrphan { go_on } => {
                let open = store.open || flaw == LeftOutRule::EndsWhatHasEnded;
                let as_found = store.owner.is_none() && unchanged && open;
                (as_found || flaw == LeftOutRule::TakesWhatIsOwned)
                    && !(go_on && store.stop)
                    && self.stands(write.lease)
            }
            TxnPurpose::Save | TxnPurpose::End | TxnPurpose::HandOver | TxnPurpose::LetGo => {
                let fenced = write.epoch.is_some_and(|epoch| self.owns(epoch));
                let demands_no_stop = write.kind == TxnPurpose::End
                    && write.record.status != Status::Stopped
                    && flaw != LeftOutRule::EndsDespiteAStop;
                (fenced || flaw == LeftOutRule::SavesAreNotFenced)
                    && (unchanged || flaw == LeftOutRule::SavesOverAnything)
                    && !(demands_no_stop && store.stop)
            }
        }
    }

    /// Whether a key can still be put under a lease. The only late writes of an earlier life are
    /// those rejected together with its lease.
    fn stands(&self, lease: Lease) -> bool {
        let worker = &self.workers[lease.worker];
        worker.life != lease.life || !worker.lease_gone
    }

    fn note_claim(&mut self, write: &Write, now: Revision) {
        if now <= self.history.last_epoch {
            self.slip(Violation::EpochsShrink);
        }
        if self.store.owner.is_some() {
            self.slip(Violation::TwoOwners);
        }
        self.history.last_epoch = now;
        self.history.losses = self.history.losses.max(write.record.losses);
        self.note_change(write);
        for worker in &mut self.workers {
            worker.own_lost = false;
        }
    }

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
        self.note_change(write);
    }

    /// Checks that an end never changes and that a decided cause is recorded. Only a stop overrides
    /// it.
    fn note_change(&mut self, write: &Write) {
        let Some(before) = self.store.record.map(|stored| stored.record) else { return };
        let (old, new) = (before.status, write.record.status);
        if old.is_ended() && old != new {
            self.slip(Violation::EndedRecordChanged);
        }
        let obeyed = |cause| match new.is_ended() {
            true => new == cause || new == Status::Stopped,
            false => write.record.cause == Some(cause),
        };
        if !old.is_ended() && !before.cause.is_none_or(obeyed) {
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
