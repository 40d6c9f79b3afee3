//! Detects a peer that keeps a connection open without making progress.

use std::time::Duration;

use tokio::time::{Instant, timeout};

/// Timeouts of services.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// The timeout for connecting.
    pub connect: Duration,
    /// The timeout for the head of a response, and the window in which progress is measured.
    pub idle: Duration,
    /// The minimum number of bytes that must be transferred in each `idle`.
    pub progress_bytes: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            progress_bytes: 16 << 10,
        }
    }
}

/// Counts the bytes transferred in each window of waiting for the peer. Time spent on our own side
/// does not count.
#[derive(Debug)]
pub(super) struct Progress {
    window: Duration,
    least: u64,
    waited: Duration,
    moved: u64,
}

/// The peer transferred too few bytes in a window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stalled {
    window: Duration,
    moved: u64,
}

impl Stalled {
    pub(super) fn new(timeouts: &Timeouts, moved: u64) -> Self {
        Self { window: timeouts.idle, moved }
    }
}

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.window.as_secs_f64();
        match self.moved {
            0 => write!(f, "nothing for {seconds} s"),
            moved => write!(f, "only {moved} bytes within {seconds} s"),
        }
    }
}

impl Progress {
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        let (window, least) = (timeouts.idle, timeouts.progress_bytes);
        Self { window, least, waited: Duration::ZERO, moved: 0 }
    }

    /// Waits for the peer as long as it makes progress.
    pub(super) async fn wait<T>(&mut self, peer: impl Future<Output = T>) -> Result<T, Stalled> {
        tokio::pin!(peer);
        loop {
            let began = Instant::now();
            let left = self.window.saturating_sub(self.waited);
            if let Ok(done) = timeout(left, &mut peer).await {
                self.waited += began.elapsed();
                return Ok(done);
            }
            if self.moved < self.least {
                return Err(Stalled { window: self.window, moved: self.moved });
            }
            (self.waited, self.moved) = (Duration::ZERO, 0);
        }
    }

    /// Counts received bytes.
    pub(super) fn note(&mut self, bytes: usize) {
        self.moved += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timeouts() -> Timeouts {
        Timeouts { connect: SECOND, idle: SECOND * 60, progress_bytes: 1000 }
    }

    #[tokio::test(start_paused = true)]
    async fn one_byte_a_second_is_a_stall() {
        let (began, mut progress) = (Instant::now(), Progress::new(&timeouts()));
        let stalled = loop {
            match progress.wait(tokio::time::sleep(SECOND)).await {
                Ok(()) => progress.note(1),
                Err(stalled) => break stalled,
            }
        };
        assert_eq!(began.elapsed(), SECOND * 60);
        assert!(stalled.to_string().starts_with("only "), "{stalled}");
        let silent = Progress::new(&timeouts()).wait(std::future::pending::<()>()).await;
        assert_eq!(silent.unwrap_err().to_string(), "nothing for 60 s");
    }

    #[tokio::test(start_paused = true)]
    async fn enough_bytes_per_window_are_never_a_stall_and_own_time_does_not_count() {
        let mut progress = Progress::new(&timeouts());
        for _ in 0..1000 {
            progress.wait(tokio::time::sleep(SECOND)).await.unwrap();
            progress.note(20);
        }
        let mut progress = Progress::new(&timeouts());
        for _ in 0..50 {
            progress.wait(tokio::time::sleep(SECOND)).await.unwrap();
            progress.note(1);
            tokio::time::sleep(SECOND * 60).await;
        }
    }
}
