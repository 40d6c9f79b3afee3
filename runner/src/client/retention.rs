//! Whether the stream still has the log of a run.

use std::time::Duration;

use futures::StreamExt as _;
use protocol::time::Millis;
use tokio::time::timeout;

use super::{Client, Error};
use crate::ports::{EventsError, Position};

/// The maximum time to wait for the oldest event of the stream.
const OLDEST_WITHIN: Duration = Duration::from_secs(10);

/// The first event of a run comes at most this long after the run was accepted, in milliseconds.
const FIRST_EVENT_WITHIN: i64 = 1000;

/// The stream's retention has removed the beginning of a run's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastRetention {
    /// The time of the oldest remaining event. `None` if there is none.
    pub oldest: Option<Millis>,
}

impl Client {
    /// Whether the stream has dropped the beginning of the log of a run that was accepted at this
    /// time, judged by its oldest event.
    ///
    /// # Errors
    /// Errors of the stream.
    pub async fn past_retention(&self, scheduled: Millis) -> Result<Option<PastRetention>, Error> {
        let events = self.services.events().await?;
        if events.end().await?.is_none() {
            return Ok(Some(PastRetention { oldest: None }));
        }
        let mut stream = events.follow(Position::First).await?;
        let Ok(oldest) = timeout(OLDEST_WITHIN, stream.next()).await else { return Ok(None) };
        let oldest = oldest.ok_or(EventsError::Closed)??.event().map(|event| event.at);
        let is_past = oldest.is_some_and(|oldest| oldest.0 > scheduled.0 + FIRST_EVENT_WITHIN);
        Ok(is_past.then_some(PastRetention { oldest }))
    }
}
