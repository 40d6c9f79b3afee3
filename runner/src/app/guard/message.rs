//! Messages from a worker to its guard, one per line. They contain no secrets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum GuardMessage {
    /// The URL of the engine. Sent first. It is not an argument, because everyone on a host can
    /// read arguments and the URL might be confidential.
    Engine(String),
    /// The URL of the Docker engine, which can exist in addition.
    Docker(String),
    /// The lease is valid until this time, in milliseconds of the boot clock.
    StandsUntil(u64),
    /// There is nothing left to guard.
    Goodbye,
}

impl GuardMessage {
    pub(super) fn owned_until(until: Duration) -> Self {
        Self::StandsUntil(u64::try_from(until.as_millis()).unwrap_or(u64::MAX))
    }

    /// Encodes it as a line, short enough for a pipe to take it in one piece.
    pub(super) fn line(&self) -> Vec<u8> {
        // Cannot fail: it has only numbers and texts.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Splits the bytes of the pipe into messages.
#[derive(Debug, Default)]
pub(super) struct MessageReader(Vec<u8>);

impl MessageReader {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next complete message. Invalid lines are skipped; both sides are the same program.
    pub(super) fn next(&mut self) -> Option<GuardMessage> {
        loop {
            let end = self.0.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.0.drain(..=end).collect();
            if let Ok(word) = serde_json::from_slice(&line) {
                return Some(word);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_however_they_are_split() {
        let said = [
            GuardMessage::Engine("unix:///a b\n\"c".into()),
            GuardMessage::Docker("http://d:1".into()),
            GuardMessage::owned_until(Duration::from_micros(1_234_567)),
            GuardMessage::Goodbye,
        ];
        let bytes: Vec<u8> = said.iter().flat_map(GuardMessage::line).collect();
        let (mut words, mut heard) = (MessageReader::default(), Vec::new());
        for byte in bytes {
            words.push(&[byte]);
            heard.extend(words.next());
        }
        assert_eq!(heard, said);
        assert_eq!(said[2], GuardMessage::StandsUntil(1234));
    }

    #[test]
    fn invalid_messages_are_skipped() {
        let mut words = MessageReader::default();
        words.push(b"\n{\"later\":1}\n\"goodbye\"\n\"good");
        assert_eq!((words.next(), words.next()), (Some(GuardMessage::Goodbye), None));
    }
}
