//! The pace at which an account may be asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// An account, by a digest: its key is not kept.
type Account = [u8; 32];

/// Requests of this process to a service, spaced for each account.
///
/// Other workers may ask for the same account: what that makes too many is told by the service.
#[derive(Debug)]
pub(super) struct Pace {
    gap: Duration,
    next: Mutex<HashMap<Account, Instant>>,
}

/// The pace of one account.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    pace: Arc<Pace>,
    account: Account,
}

impl Pace {
    /// At most one request for each `gap`.
    pub(super) fn new(gap: Duration) -> Self {
        Self { gap, next: Mutex::default() }
    }

    /// The turns of the account of a key at an address.
    pub(super) fn of(self: &Arc<Self>, address: &str, key: &str) -> Turns {
        let digest = Sha256::new().chain_update(address).chain_update([0]).chain_update(key);
        Turns { pace: Arc::clone(self), account: digest.finalize().into() }
    }
}

impl Turns {
    /// Takes the next turn: when it is.
    pub(super) fn take(&self) -> Instant {
        let now = Instant::now();
        let mut next = self.pace.next.lock().unwrap_or_else(PoisonError::into_inner);
        // An account that has waited long enough is as one that was never seen.
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
