//! SIGINT and SIGTERM, one after the other.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{Exit, Failure};

/// The signals that ask a program to end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

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
        })
    }

    /// The next signal, as the exit code that belongs to it.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next(&mut self) -> Exit {
        tokio::select! {
            Some(()) = self.interrupt.recv() => Exit::Interrupted,
            Some(()) = self.terminate.recv() => Exit::Terminated,
            // Listening has ended for good: nothing more comes.
            else => std::future::pending().await,
        }
    }
}
