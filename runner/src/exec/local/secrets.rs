//! The secrets of a step, as in-memory files that only this user can read.

use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use protocol::id::RunId;
use rustix::fs::statfs;

use crate::ports::{StepSecret, StepSecrets};

/// The file system types in memory, `tmpfs` and `ramfs`, from linux/magic.h.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The candidate directories for secrets.
#[derive(Debug, Clone)]
pub(super) struct SecretsDirs(Vec<PathBuf>);

/// The secrets written for one step.
#[derive(Debug, Default)]
pub(super) struct WrittenSecrets {
    dir: Option<PathBuf>,
    /// The variables added to the step's environment.
    pub(super) env: Vec<(OsString, OsString)>,
}

impl WrittenSecrets {
    /// Removes the files after the step has ended.
    pub(super) fn take_back(self) -> std::io::Result<()> {
        self.dir.map_or(Ok(()), |dir| gone(std::fs::remove_dir_all(dir)))
    }
}

fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    removed.or_else(
        |cause| {
            if cause.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(cause) }
        },
    )
}

fn is_in_memory(dir: &Path) -> bool {
    // The width of `f_type` depends on the machine. Both values fit everywhere.
    statfs(dir).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|t| IN_MEMORY.contains(&t)))
}

/// Creates a directory that only this user can access, or accepts an existing one.
fn private(dir: &Path) -> Result<(), String> {
    let cannot = |cause: std::io::Error| format!("cannot make {}: {cause}", dir.display());
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(cause) => return Err(cannot(cause)),
    }
    // Its parent is world-writable, so it can be another user's directory or a link.
    let meta = dir.symlink_metadata().map_err(cannot)?;
    let me = rustix::process::geteuid().as_raw();
    if meta.is_dir() && meta.uid() == me && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(format!("{} is not this user's alone: remove it", dir.display()))
}

impl SecretsDirs {
    /// Uses the first of these directories that is in memory.
    pub(super) fn new(below: Vec<PathBuf>) -> Self {
        Self(below)
    }

    /// The secret directories of this user, whether they exist or not.
    fn all(&self) -> impl Iterator<Item = PathBuf> {
        let name = format!("bob-runner-{}", rustix::process::geteuid().as_raw());
        self.0.iter().filter(|dir| is_in_memory(dir)).map(move |dir| dir.join(&name))
    }

    /// Writes the secrets of a step.
    pub(super) fn hand(
        &self,
        (run, step): (&RunId, &str),
        given: &[StepSecret],
    ) -> Result<WrittenSecrets, String> {
        if given.is_empty() {
            return Ok(WrittenSecrets::default());
        }
        let Some(ours) = self.all().next() else {
            let below: Vec<String> = self.0.iter().map(|dir| dir.display().to_string()).collect();
            return Err(format!(
                "there is no place in memory for secrets: none of {} is a tmpfs",
                below.join(", ")
            ));
        };
        let of_run = ours.join(run.as_str());
        let dir = of_run.join(step);
        for dir in [&ours, &of_run] {
            private(dir)?;
        }
        // Remove what an owner that died during an earlier start left.
        let cannot = |cause: std::io::Error| format!("cannot write secrets to memory: {cause}");
        gone(std::fs::remove_dir_all(&dir)).map_err(cannot)?;
        private(&dir)?;
        let mut handed = WrittenSecrets {
            env: vec![(StepSecrets::VARIABLE.into(), dir.clone().into())],
            dir: Some(dir.clone()),
        };
        for StepSecret { name, env, value } in given {
            let path = dir.join(name);
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path);
            let mut file = opened.map_err(cannot)?;
            file.write_all(value.expose()).map_err(cannot)?;
            let variable = env
                .as_ref()
                .map(|env| (OsString::from(env), OsString::from_vec(value.expose().to_vec())));
            handed.env.extend(variable);
        }
        Ok(handed)
    }

    /// Removes the secrets of a run's steps that a dead worker left.
    pub(super) fn forget(&self, run: &RunId) -> std::io::Result<()> {
        self.all().try_for_each(|ours| gone(std::fs::remove_dir_all(ours.join(run.as_str()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Secret;

    fn given() -> Vec<StepSecret> {
        let one = |name: &str, env: Option<&str>| StepSecret {
            name: name.to_owned(),
            env: env.map(str::to_owned),
            value: Secret::new(name.as_bytes()),
        };
        vec![one("a", None), one("b", Some("B"))]
    }

    #[test]
    fn secrets_are_files_of_one_user_until_the_step_ends() {
        let place = SecretsDirs::new(vec!["/dev/shm".into()]);
        if place.all().next().is_none() {
            return;
        }
        let run: RunId = format!("r-secrets-{}", std::process::id()).parse().unwrap();
        let handed = place.hand((&run, "0-1"), &given()).unwrap();
        let dir = handed.dir.clone().unwrap();
        assert_eq!(std::fs::read(dir.join("b")).unwrap(), b"b");
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("a"))), (0o700, 0o400));
        assert_eq!(handed.env[0], ("BOB_SECRETS".into(), dir.clone().into()));
        assert_eq!(handed.env[1..], [("B".into(), "b".into())]);
        handed.take_back().unwrap();
        assert!(!dir.exists());
        place.hand((&run, "0-2"), &given()).unwrap();
        place.forget(&run).unwrap();
        assert!(!dir.parent().unwrap().exists());
        place.forget(&run).unwrap();
    }

    #[test]
    fn secrets_are_never_written_to_a_disk() {
        let place = SecretsDirs::new(vec!["/proc".into(), "/nowhere".into()]);
        let run: RunId = "r-a".parse().unwrap();
        let said = place.hand((&run, "0-1"), &given()).unwrap_err();
        assert!(said.contains("none of /proc, /nowhere is a tmpfs"), "{said}");
        assert!(place.hand((&run, "0-1"), &[]).unwrap().env.is_empty());
    }
}
