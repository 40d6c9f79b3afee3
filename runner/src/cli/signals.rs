//! SIGINT, SIGTERM and SIGHUP as a sequence, and the signals that reload.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use tokio::time::Instant;

use super::exit::{Exit, Failure};

/// Signals that ask the program to stop.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if SIGHUP was ignored at program start, as under `nohup`.
    hangup: Option<Signal>,
    last: Option<Instant>,
}

/// Signals within this time count as one. `timeout` and some supervisors signal a process and then
/// its process group, which would look like a second signal and force an exit.
const ONE_SIGNAL: Duration = Duration::from_millis(500);

impl Signals {
    /// Installs handlers. From now on, these signals no longer terminate the process.
    pub(super) fn listen() -> Result<Self, Failure> {
        Self::with(hangup()?)
    }

    /// Like [`Self::listen`], and also listens to the signals that reload a service.
    pub(super) fn listen_to_all(meaning: Hangup) -> Result<(Self, ReloadSignals), Failure> {
        let (stop, reload) = match meaning {
            Hangup::Stops => (hangup()?, None),
            Hangup::Reloads => (None, hangup()?),
        };
        let user = listen(SignalKind::user_defined1())?;
        Ok((Self::with(stop)?, ReloadSignals { user, hangup: reload }))
    }

    fn with(hangup: Option<Signal>) -> Result<Self, Failure> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup,
            last: None,
        })
    }

    /// Waits for the next signal and returns its exit code. SIGHUP counts as SIGTERM.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Exit {
        loop {
            let exit = tokio::select! {
                Some(()) = self.interrupt.recv() => Exit::Interrupted,
                Some(()) = self.terminate.recv() => Exit::Terminated,
                Some(()) = next_of(&mut self.hangup) => Exit::Terminated,
                // All handlers are closed, so no signal will arrive.
                else => std::future::pending().await,
            };
            // Measured from the last reported signal, so that a held-down key gets through.
            if self.last.is_none_or(|last| last.elapsed() > ONE_SIGNAL) {
                self.last = Some(Instant::now());
                return exit;
            }
        }
    }
}

/// What SIGHUP means to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hangup {
    /// Its terminal is gone: the same as SIGTERM.
    Stops,
    /// Its files have changed.
    Reloads,
}

/// Signals that ask a service to read its files again.
#[derive(Debug)]
pub(super) struct ReloadSignals {
    user: Signal,
    hangup: Option<Signal>,
}

impl ReloadSignals {
    /// Waits for the next signal.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            Some(()) = self.user.recv() => {}
            Some(()) = next_of(&mut self.hangup) => {}
            // All handlers are closed, so no signal will arrive.
            else => std::future::pending().await,
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind)
        .map_err(|cause| Failure::new(Exit::Failed, format!("cannot listen to signals: {cause}")))
}

/// `None` if SIGHUP was ignored at program start.
fn hangup() -> Result<Option<Signal>, Failure> {
    if ignores_hangup() {
        return Ok(None);
    }
    listen(SignalKind::hangup()).map(Some)
}

async fn next_of(signal: &mut Option<Signal>) -> Option<()> {
    signal.as_mut()?.recv().await
}

/// Whether SIGHUP was ignored at program start. Installing a handler would undo that.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    has_ignored_hangup(&status)
}

fn has_ignored_hangup(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // SIGHUP is signal 1, the lowest bit.
    mask.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_hangup_is_the_lowest_bit_of_the_mask() {
        assert!(has_ignored_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!has_ignored_hangup("SigIgn:\t0000000000001000\n"));
        assert!(!has_ignored_hangup(""));
    }
}
