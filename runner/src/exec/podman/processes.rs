//! Ends steps without the engine, on the engine's own host. The engine starts a conmon per
//! container; its command line has the container's name, its directory and the file with its
//! process id.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::id::NodeId;
use protocol::names;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The pause between two checks of a killed process.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The timeout for a killed process to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A container that has a conmon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watched {
    conmon: i32,
    pub(super) name: String,
    /// The directory of the container's configuration.
    bundle: PathBuf,
    /// The file with the id of the container's first process.
    pid_file: PathBuf,
}

impl Watched {
    /// The container of a conmon, by its command line.
    fn of(conmon: i32, command_line: &[u8]) -> Option<Self> {
        let words: Vec<&str> = command_line
            .split(|byte| *byte == 0)
            .map(|word| str::from_utf8(word).ok())
            .collect::<Option<_>>()?;
        if Path::new(words.first()?).file_name()? != "conmon" {
            return None;
        }
        let after = |flag: &str| {
            let at = words.iter().position(|word| *word == flag)?;
            words.get(at + 1).copied()
        };
        Some(Self {
            conmon,
            name: after("-n")?.to_owned(),
            bundle: after("-b")?.into(),
            pid_file: after("-p")?.into(),
        })
    }

    /// Whether a worker created it, according to the annotation in its configuration.
    pub(super) fn is_of(&self, worker: &NodeId) -> bool {
        let config = std::fs::read(self.bundle.join("config.json")).unwrap_or_default();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        let maker = config.get("annotations").and_then(|all| all.get(names::LABEL_WORKER));
        maker.and_then(serde_json::Value::as_str) == Some(worker.as_str())
    }

    /// Kills its first process, which ends all others. Returns a descriptor that becomes readable
    /// when it ends, or `None` if it has already ended.
    fn kill(&self) -> io::Result<Option<OwnedFd>> {
        let pid = match std::fs::read_to_string(&self.pid_file) {
            Ok(pid) => pid.trim().parse().ok().and_then(Pid::from_raw),
            Err(cause) => return Err(cause),
        };
        let pid = pid.ok_or_else(|| io::Error::other("the file with its process id holds none"))?;
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => return Ok(None),
            Err(cause) => return Err(cause.into()),
        };
        // Check the parent only now: before, the number could have been reused by another process.
        if parent_of(pid.as_raw_nonzero().get()) != Some(self.conmon) {
            return Ok(None);
        }
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(Some(process)),
            Err(cause) => Err(cause.into()),
        }
    }
}

/// The parent of a process: the fourth field of `stat`. The second one is the name in parentheses.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The containers of this host that have a conmon.
pub(super) fn watched() -> io::Result<Vec<Watched>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Empty if the process has ended meanwhile.
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        all.extend(Watched::of(pid, &command_line));
    }
    Ok(all)
}

/// Kills the processes of containers and waits for their end.
///
/// # Errors
/// If one cannot be killed or does not end in time.
pub(super) async fn end(containers: Vec<Watched>) -> io::Result<()> {
    let mut ends = Vec::new();
    for container in containers {
        if let Some(process) = container.kill()? {
            ends.push((container, process));
        }
    }
    for (container, process) in ends {
        let waited = tokio::time::timeout(ENDS_WITHIN, ended(&process)).await;
        waited.unwrap_or_else(|_elapsed| {
            let name = &container.name;
            Err(io::Error::other(format!("the process of {name} was killed and has not ended")))
        })?;
    }
    Ok(())
}

/// Returns when a process has ended.
async fn ended(process: &OwnedFd) -> io::Result<()> {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    while poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&at_once))? == 0 {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LINE: &[u8] = b"/usr/bin/conmon\0--api-version\0\x31\0-c\0cafe\0-u\0cafe\0-r\0/usr/bin/crun\0-b\0/s/cafe/userdata\0-p\0/r/cafe/userdata/pidfile\0-n\0bob-r-1-0\0--exit-dir\0/r/exits\0";

    #[test]
    fn a_conmon_names_its_container_and_the_file_with_its_process() {
        let found = Watched::of(7, LINE).unwrap();
        assert_eq!(found.name, "bob-r-1-0");
        assert_eq!(found.pid_file, Path::new("/r/cafe/userdata/pidfile"));
        assert_eq!(Watched::of(7, b"/usr/bin/sh\0-n\0a\0-b\0b\0-p\0c\0"), None);
        assert_eq!(Watched::of(7, b""), None);
    }

    /// A container whose first process is a child of this test.
    fn child(dir: &Path) -> (std::process::Child, Watched) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid_file = dir.join("pidfile");
        std::fs::write(&pid_file, format!("{}\n", child.id())).unwrap();
        let conmon = i32::try_from(std::process::id()).unwrap();
        let watched =
            Watched { conmon, name: "bob-r-1-0".into(), bundle: dir.to_owned(), pid_file };
        (child, watched)
    }

    #[tokio::test]
    async fn a_recorded_process_is_killed_and_its_end_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, watched) = child(dir.path());
        end(vec![watched.clone()]).await.unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        end(vec![watched]).await.unwrap();
    }

    #[tokio::test]
    async fn a_process_that_has_taken_the_number_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, watched) = child(dir.path());
        end(vec![Watched { conmon: 1, ..watched }]).await.unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it is not the container's");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn only_its_makers_containers_are_a_workers() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, watched) = child(dir.path());
        child.kill().unwrap();
        child.wait().unwrap();
        let [maker, other] = ["bob/runner-1", "bob/runner-2"].map(NodeId::from_stored);
        assert!(!watched.is_of(&maker), "it has no configuration");
        let config = format!(r#"{{"annotations":{{"{}":"{maker}"}}}}"#, names::LABEL_WORKER);
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        assert!(watched.is_of(&maker));
        assert!(!watched.is_of(&other));
    }
}
