//! Deadlines for the peer of a connection: a container engine or another host.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use protocol::event::LogStream;
use tokio::time::{Instant, sleep, sleep_until};

use crate::ports::{ExecError, LogSink, StopLevel, StopSignal};

/// How long a container may still be prepared after a stop. A container whose preparation ends in
/// that time is removed by its id. Any other one was never started, and is removed with its run.
const AFTER_STOP: Duration = Duration::from_secs(5);

/// Waits until a container is prepared, or returns [`ExecError::NotStarted`] soon after a stop.
pub(super) async fn or_stopped<T>(
    preparing: impl Future<Output = Result<T, ExecError>>,
    stop: &StopSignal,
) -> Result<T, ExecError> {
    let stopped = async {
        stop.above(StopLevel::Run).await;
        sleep(AFTER_STOP).await;
    };
    tokio::select! {
        biased;
        prepared = preparing => prepared,
        () = stopped => Err(ExecError::NotStarted),
    }
}

/// The time at which bytes last moved between the peer and this process. The peer is not late while
/// this process itself holds the bytes up, for example because a sink is full.
#[derive(Debug)]
pub(super) struct Flow(Mutex<State>);

#[derive(Debug)]
struct State {
    moved: Instant,
    held: u32,
}

impl Default for Flow {
    fn default() -> Self {
        Self(Mutex::new(State { moved: Instant::now(), held: 0 }))
    }
}

impl Flow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Notes that the peer has sent or accepted bytes.
    pub(super) fn moved(&self) {
        self.state().moved = Instant::now();
    }

    /// Marks the bytes as held up by this process until the returned value is dropped.
    pub(super) fn hold(&self) -> FlowHold<'_> {
        self.state().held += 1;
        FlowHold(self)
    }

    pub(super) fn is_held(&self) -> bool {
        self.state().held > 0
    }

    /// Returns once the peer has moved no bytes for this long.
    pub(super) async fn stalled(&self, within: Duration) {
        loop {
            let now = Instant::now();
            let since = if self.is_held() { now } else { self.state().moved };
            if since + within <= now {
                return;
            }
            sleep_until(since + within).await;
        }
    }
}

/// See [`Flow::hold`].
#[derive(Debug)]
pub(super) struct FlowHold<'a>(&'a Flow);

impl Drop for FlowHold<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.moved, state.held) = (Instant::now(), state.held - 1);
    }
}

/// A sink that holds the flow up while it writes.
pub(super) struct HoldingSink {
    pub(super) out: Arc<dyn LogSink>,
    pub(super) flow: Arc<Flow>,
}

#[async_trait]
impl LogSink for HoldingSink {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        let _hold = self.flow.hold();
        self.out.write(stream, bytes).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flow_stalls_when_the_other_side_moves_nothing_for_long_enough() {
        let flow = Flow::default();
        let begun = Instant::now();
        let moving = async {
            for _ in 0..3 {
                sleep(Duration::from_secs(50)).await;
                flow.moved();
            }
            let hold = flow.hold();
            sleep(Duration::from_secs(1000)).await;
            drop(hold);
        };
        tokio::join!(moving, flow.stalled(Duration::from_secs(60)));
        let passed = begun.elapsed().as_secs();
        assert!((1210..1280).contains(&passed), "{passed} s");
    }
}
