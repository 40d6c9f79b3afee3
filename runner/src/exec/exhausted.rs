//! Recognizes from an engine's message which resource of its host is exhausted.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::ports::{ExecError, Pauses, StepSpec, StopLevel, StopSignal};

/// Whether the engine's disk is full.
pub(super) fn no_space(message: &str) -> bool {
    // The engine writes lower case, and the programs it runs use the C library's text. The
    // database of podman 5 on the same disk has a message of its own.
    let message = message.to_ascii_lowercase();
    let said = ["no space left on device", "disk quota exceeded", "database or disk is full"];
    !is_key_quota(&message) && said.iter().any(|said| message.contains(said))
}

/// Whether the kernel's key quota of the engine's user is exhausted (`EDQUOT`, which the C library
/// calls a disk quota). Room returns when other containers end.
pub(super) fn no_keys(message: &str) -> bool {
    is_key_quota(&message.to_ascii_lowercase())
}

fn is_key_quota(message: &str) -> bool {
    // crun says "create keyring", runc "session key" or "session keyring".
    message.contains("quota exceeded")
        && ["keyring", "session key"].iter().any(|said| message.contains(said))
}

/// Whether a commit failed because the engine's temporary directory is full. The process that
/// unpacks the layer there dies, and the engine reports only its closed pipe.
pub(super) fn no_temporary_space(message: &str) -> bool {
    message.contains("read/write on closed pipe")
}

/// Waits until the kernel might have room for keys again.
#[derive(Debug)]
pub(super) struct KeyWait {
    pauses: Pauses,
    until: Option<Instant>,
}

impl Default for KeyWait {
    fn default() -> Self {
        Self { pauses: Pauses::doubling(FIRST_PAUSE, LONGEST_PAUSE), until: None }
    }
}

/// The pauses between attempts, and the total time for all of them.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_WAIT: Duration = Duration::from_secs(600);

impl KeyWait {
    /// Returns when the step can be tried again.
    ///
    /// # Errors
    /// `error` once the step has waited for ten minutes, [`ExecError::NotStarted`] if it is
    /// stopped.
    pub(super) async fn wait(
        &mut self,
        error: ExecError,
        step: &StepSpec,
        stop: &StopSignal,
    ) -> Result<(), ExecError> {
        let until = *self.until.get_or_insert_with(|| Instant::now() + LONGEST_WAIT);
        if Instant::now() >= until {
            return Err(error);
        }
        let pause = self.pauses.take_next();
        tracing::warn!(step.name = %step.name, %error, "step {} waits for {pause:.1?}", step.name);
        tokio::select! {
            () = sleep(pause) => {}
            _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognised_in_any_programs_words() {
        for said in [
            "copying layer: write /store/1: no space left on device",
            "OCI runtime error: crun: mkdir `/x`: No space left on device",
            "write /x: Disk quota exceeded",
            "adding container 59ba exit code 1: database or disk is full",
        ] {
            assert!(no_space(said) && !no_keys(said), "{said}");
        }
        assert!(!no_space("no such device"));
    }

    #[test]
    fn the_kernels_key_quota_is_not_a_full_disk() {
        for said in [
            "crun: create keyring `4f0c`: Disk quota exceeded: OCI runtime error",
            "unable to join session keyring: unable to create session key: disk quota exceeded",
        ] {
            assert!(no_keys(said) && !no_space(said), "{said}");
        }
    }

    fn key_quota() -> ExecError {
        ExecError::KeyQuota { cause: "create keyring `4f0c`: Disk quota exceeded".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_waits_for_keys_with_growing_pauses_and_not_for_ever() {
        let step = crate::exec::job::tests::docker_step(serde_json::json!({ "image": "i" }));
        let (mut keys, stop, begun) = (KeyWait::default(), StopSignal::default(), Instant::now());
        let mut waits = 0;
        let error = loop {
            match keys.wait(key_quota(), &step, &stop).await {
                Ok(()) => waits += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ExecError::KeyQuota { .. }) && error.retryable(), "{error}");
        assert!(error.to_string().contains("kernel.keys.maxkeys"), "{error}");
        assert!((40..60).contains(&waits), "{waits} waits");
        assert!(begun.elapsed() >= LONGEST_WAIT);
        let mut keys = KeyWait::default();
        stop.raise(StopLevel::Kill);
        let stopped = keys.wait(key_quota(), &step, &stop).await;
        assert!(matches!(stopped, Err(ExecError::NotStarted)));
    }

    #[test]
    fn a_full_temporary_directory_shows_as_a_closed_pipe() {
        assert!(no_temporary_space("CommitFailure: copying layers: io: read/write on closed pipe"));
        assert!(!no_temporary_space("CommitFailure: layer not known"));
    }
}
