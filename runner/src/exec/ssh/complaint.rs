//! Explains why a connection failed and what to do about it.

use super::target::{KnownHosts, Target};

/// The maximum number of characters quoted from others' messages.
const LONGEST: usize = 300;

/// The last message of `ssh` or the host. `None` if there is none.
pub(super) fn last_words(log: &str, stderr: &str) -> Option<String> {
    let last = |text: &str| {
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        let shown = line.chars().map(|c| if c.is_control() { ' ' } else { c });
        Some(shown.take(LONGEST).collect())
    };
    last(log).or_else(|| last(stderr))
}

/// Why no step was started on `target`.
pub(super) fn not_connected(target: &Target, log: &str, stderr: &str, ended: &str) -> String {
    let at = target.at();
    let known_in = target.known_in();
    if log.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        return format!(
            "the key of {at} is not the one that is known: where that is right, remove the old one \
             from {known_in}"
        );
    }
    if log.contains("Host key verification failed") {
        let or = match target.known_hosts {
            KnownHosts::Strict => ", or say `known_hosts: accept-new`",
            KnownHosts::AcceptNew | KnownHosts::Off => "",
        };
        return format!("the key of {at} is not known: add it to {known_in}{or}");
    }
    match last_words(log, stderr) {
        Some(words) if words.contains("Permission denied") => {
            format!("{at} does not let the worker in: {words}")
        }
        Some(words) => format!("there is no connection to {at}: {words}"),
        None => format!("{at} did not run `sh` for the worker: {ended}"),
    }
}
