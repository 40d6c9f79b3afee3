//! One established connection to the broker.

use std::time::Duration;

use futures::StreamExt as _;
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, Event};
use tracing::{info, warn};

use super::faults::Fault;

/// The interval at which the status of a connection is polled, in addition to its events.
const LOOK: Duration = Duration::from_secs(1);

/// An established connection.
pub(in crate::cluster) struct Live {
    pub(super) connection: Connection,
    /// The number of the connection. Objects of an earlier connection are invalid.
    pub(in crate::cluster) number: u64,
    pub(super) since: tokio::time::Instant,
}

impl Live {
    pub(in crate::cluster) fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    pub(in crate::cluster) async fn channel(&self) -> Result<Channel, Fault> {
        Ok(self.connection.create_channel().await?)
    }

    /// Opens a channel with publisher confirms.
    pub(in crate::cluster) async fn confirming_channel(&self) -> Result<Channel, Fault> {
        let channel = self.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Waits until the connection has ended and returns the reason.
    pub(super) async fn ended(&self, broker: &str) -> Fault {
        let mut events = std::pin::pin!(self.connection.events_listener());
        let mut last = None;
        while self.is_open() {
            match tokio::time::timeout(LOOK, events.next()).await {
                // The error may concern a channel only. The loop condition checks the connection.
                Ok(Some(Event::Error(error))) => last = Some(Fault::from(error)),
                Ok(Some(Event::ConnectionBlocked(reason))) => {
                    warn!(broker, reason, "the broker takes no messages for now");
                }
                Ok(Some(Event::ConnectionUnblocked)) => {
                    info!(broker, "the broker takes messages again")
                }
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => tokio::time::sleep(LOOK).await,
            }
        }
        last.unwrap_or_else(|| Fault::Unreachable("the connection has ended".to_owned()))
    }
}
