//! SIGINT and SIGTERM, one after the other.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use tokio::time::Instant;

use super::exit::{Exit, Failure};

/// The signals that ask a program to end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
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
            last: None,
        })
    }

    /// The next signal, as the exit code that belongs to it.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next(&mut self) -> Exit {
        loop {
            let exit = tokio::select! {
                Some(()) = self.interrupt.recv() => Exit::Interrupted,
                Some(()) = self.terminate.recv() => Exit::Terminated,
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
