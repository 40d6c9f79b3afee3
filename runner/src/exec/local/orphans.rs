//! Ends what a step leaves after its own supervisor was killed.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The maximum number of scans for the processes of a step. Each scan kills the processes that it
/// finds, and the next one shows whether any are left.
const LOOKS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(20);

/// Kills every process of this host with this variable in its environment, until none is left.
///
/// The variable names a directory of one attempt of one step, so no other process has it.
pub(super) async fn end(name: &str, dir: &Path) {
    let mut pair = format!("{name}=").into_bytes();
    pair.extend_from_slice(dir.as_os_str().as_encoded_bytes());
    for _ in 0..LOOKS {
        let pair = pair.clone();
        let killed = tokio::task::spawn_blocking(move || kill_with(&pair)).await;
        if !matches!(killed, Ok(1..)) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Kills the processes with a variable. Returns how many there were.
fn kill_with(pair: &[u8]) -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        // Only processes of this user can be read.
        let env = std::fs::read(entry.path().join("environ")).ok()?;
        env.split(|byte| *byte == 0).any(|found| found == pair).then_some(pid)
    });
    let mut killed = 0;
    for pid in pids {
        // A process that is gone needs no signal.
        kill_process(pid, Signal::KILL).ok();
        killed += 1;
    }
    killed
}
