//! Rate limits of requests per account.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// The digest of an account's address and key. The key itself is not stored.
type Account = [u8; 32];

/// Spaces the requests of this process to a service, separately for each account.
///
/// Other workers can use the same account. If they exceed its limit together, the service says so.
#[derive(Debug)]
pub(super) struct Pace {
    gap: Duration,
    next: Mutex<HashMap<Account, Instant>>,
}

/// The request slots of one account.
#[derive(Debug, Clone)]
pub(super) struct RequestSlots {
    pace: Arc<Pace>,
    account: Account,
}

impl Pace {
    /// Allows one request per account in each `gap`.
    pub(super) fn new(gap: Duration) -> Self {
        Self { gap, next: Mutex::default() }
    }

    /// The slots of the account with this address and key.
    pub(super) fn of(self: &Arc<Self>, address: &str, key: &str) -> RequestSlots {
        let digest = Sha256::new().chain_update(address).chain_update([0]).chain_update(key);
        RequestSlots { pace: Arc::clone(self), account: digest.finalize().into() }
    }
}

impl RequestSlots {
    /// Reserves the next slot and returns its time.
    pub(super) fn take(&self) -> Instant {
        let now = Instant::now();
        let mut next = self.pace.next.lock();
        // An account whose pause has passed needs no entry.
        next.retain(|_, turn| *turn > now);
        let turn = next.get(&self.account).copied().unwrap_or(now);
        next.insert(self.account, turn + self.pace.gap);
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_requests_of_an_account_are_spaced_and_other_accounts_do_not_wait() {
        let gap = Duration::from_millis(500);
        let pace = Arc::new(Pace::new(gap));
        let (mine, other) = (pace.of("http://h", "mine"), pace.of("http://h", "other"));
        let now = Instant::now();
        assert_eq!([mine.take(), mine.take(), mine.take()], [now, now + gap, now + 2 * gap]);
        assert_eq!(other.take(), now);
        tokio::time::advance(10 * gap).await;
        assert_eq!(mine.take(), now + 10 * gap);
    }
}
