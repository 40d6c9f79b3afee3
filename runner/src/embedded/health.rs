//! Tracks whether the file can be written.

use std::io::{self, ErrorKind};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// Writes that fail for this long without a success are regarded as a permanent failure.
const GIVES_UP_AFTER: Duration = Duration::from_secs(10);

/// Tracks the outcome of writes.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The first failure since the last success.
    first: Mutex<Option<(Instant, String)>>,
    failed: watch::Sender<Option<String>>,
}

impl Health {
    /// Notes that a write succeeded.
    pub(super) fn note_success(&self) {
        *self.first.lock() = None;
    }

    /// Notes that a write failed. A full or read-only disk is permanent: retrying would never end.
    pub(super) fn note_failure(&self, kind: ErrorKind, cause: impl FnOnce() -> String) {
        let is_final = matches!(
            kind,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
        );
        if is_final {
            return self.fail(cause());
        }
        let mut first = self.first.lock();
        let (since, cause) = first.get_or_insert_with(|| (Instant::now(), cause()));
        if since.elapsed() >= GIVES_UP_AFTER {
            self.fail(cause.clone());
        }
    }

    /// Keeps the first cause, because later ones result from it.
    fn fail(&self, cause: String) {
        self.failed.send_if_modified(|failed| {
            let is_new = failed.is_none();
            failed.get_or_insert(cause);
            is_new
        });
    }

    /// Returns the cause of a permanent failure, if there is one.
    pub(super) fn cause(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Waits for a permanent failure and returns its cause.
    pub(super) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await.map(|cause| cause.clone()) {
            Ok(Some(cause)) => cause,
            // Unreachable: `self` owns the sender, and the value is `Some`.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// Returns the text of an I/O error in lower case and without its number.
#[must_use]
pub fn cause_of(error: &io::Error) -> String {
    let text = error.to_string();
    let text = match (text.rfind(" (os error "), error.raw_os_error()) {
        (Some(end), Some(_)) => text.get(..end).unwrap_or(&text).to_owned(),
        (Some(_) | None, Some(_) | None) => text,
    };
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use rustix::io::Errno;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_is_final_at_once_and_other_failures_if_they_persist() {
        let full = Health::default();
        assert!(full.failed().now_or_never().is_none());
        full.note_failure(ErrorKind::StorageFull, || "no space".into());
        full.note_failure(ErrorKind::Other, || "later".into());
        assert_eq!(full.failed().await, "no space");

        let other = Health::default();
        other.note_failure(ErrorKind::Other, || "first".into());
        tokio::time::advance(GIVES_UP_AFTER / 2).await;
        other.note_failure(ErrorKind::Other, || "second".into());
        assert!(other.failed().now_or_never().is_none());
        other.note_success();
        tokio::time::advance(GIVES_UP_AFTER).await;
        other.note_failure(ErrorKind::Other, || "third".into());
        assert!(other.failed().now_or_never().is_none(), "a success came between");
        tokio::time::advance(GIVES_UP_AFTER).await;
        other.note_failure(ErrorKind::Other, || "fourth".into());
        assert_eq!(other.failed().await, "third");
    }

    #[test]
    fn the_cause_is_the_message_of_the_operating_system() {
        assert_eq!(cause_of(&Errno::NOSPC.into()), "no space left on device");
        assert_eq!(cause_of(&io::Error::other("Odd (os error")), "odd (os error");
    }
}
