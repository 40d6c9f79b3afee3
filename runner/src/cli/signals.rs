//! SIGINT, SIGTERM and SIGHUP, one after the other.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use tokio::time::Instant;

use super::exit::{Exit, Failure};

/// The signals that ask a program to end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if the program was started with hangups ignored, as `nohup` does.
    hangup: Option<Signal>,
    last: Option<Instant>,
}

/// Signals so close together are one: `timeout` and some supervisors signal a program, and then its
/// process group. The second one asks for an end at once, and nobody meant that.
const ONE_SIGNAL: Duration = Duration::from_millis(500);

impl Signals {
    /// From now on these signals do not end the program by themselves.
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|cause| {
                Failure::new(Exit::Failed, format!("cannot listen to signals: {cause}"))
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: match ignores_hangup() {
                true => None,
                false => Some(listen(SignalKind::hangup())?),
            },
            last: None,
        })
    }

    /// The next signal, as the exit code that belongs to it. A hangup counts as SIGTERM.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Exit {
        loop {
            let exit = tokio::select! {
                Some(()) = self.interrupt.recv() => Exit::Interrupted,
                Some(()) = self.terminate.recv() => Exit::Terminated,
                Some(()) = next_of(&mut self.hangup) => Exit::Terminated,
                // Listening has ended for good: nothing more comes.
                else => std::future::pending().await,
            };
            // Counted from the one that was heard: a key that is held down gets through.
            if self.last.is_none_or(|last| last.elapsed() > ONE_SIGNAL) {
                self.last = Some(Instant::now());
                return exit;
            }
        }
    }
}

async fn next_of(signal: &mut Option<Signal>) -> Option<()> {
    signal.as_mut()?.recv().await
}

/// Whether this process was started with SIGHUP ignored. Listening to it would undo that.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    has_ignored_hangup(&status)
}

fn has_ignored_hangup(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Signal 1 is the lowest bit.
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
