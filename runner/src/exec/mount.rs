//! Mounts of a step: from the text in its `with` to the source for the engine.
//!
//! The engine resolves a path when it starts the container, which is later than any check here. So
//! a path is passed on only if the operator alone can change its target in the meantime.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use protocol::pipeline::{Mount, MountOption, MountSource};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::process::geteuid;

use super::access::{Granted, HostAccess, is_named_like_a_socket, real};

const HANDS_OVER: &str = "would hand a container engine's socket to the step";
const NOT_SHARED: &str =
    "shows a directory of the host that this worker does not share: see BOB_SHARED_DIRS";

/// A mount as passed to the engine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JobMount {
    pub(super) source: Source,
    pub(super) target: String,
    pub(super) options: Vec<MountOption>,
}

/// The source of a mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A directory or file of the host, without a link in its path.
    Dir(PathBuf),
    /// A volume of the engine, by its name.
    Volume(String),
}

/// The facts about an engine's host that decide which mounts are allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct MountHost<'a> {
    pub(super) access: &'a HostAccess,
    /// The engine's socket; `None` if the engine may be on another host.
    pub(super) socket: Option<&'a Path>,
}

impl MountHost<'_> {
    /// The mount for the engine, if the step may have it.
    ///
    /// Reads the host, which can hang on a network file system.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the mount.
    pub(super) fn resolve(&self, mount: Mount) -> Result<JobMount, String> {
        let source = match &mount.source {
            MountSource::Volume(name) => Source::Volume(name.clone()),
            MountSource::Path(path) => Source::Dir(self.path(path, &mount)?),
        };
        Ok(JobMount { source, target: mount.target, options: mount.options })
    }

    fn path(&self, path: &str, mount: &Mount) -> Result<PathBuf, String> {
        let path = std::path::absolute(path).map_err(|cause| format!("has no source: {cause}"))?;
        let path = match &self.access.granted {
            Some(granted) => {
                let plain = without_dots(&path);
                if is_named_like_a_socket(&plain) {
                    return Err(HANDS_OVER.to_owned());
                }
                // Do not touch any other path: the host could mount something there, or hang.
                let is_below = |root: &Path| plain.starts_with(root);
                let mut roots = granted.dirs.iter().map(|dir| &dir.path);
                if !roots.any(|root| is_below(root) || is_below(&real(root))) {
                    return Err(NOT_SHARED.to_owned());
                }
                plain
            }
            None => path,
        };
        let path = real(&path);
        if self.access.hands_over_an_engine(&path, self.socket) {
            return Err(HANDS_OVER.to_owned());
        }
        if let Some(granted) = &self.access.granted {
            self.is_granted(granted, &path, mount)?;
        }
        Ok(path)
    }

    fn is_granted(&self, granted: &Granted, path: &Path, mount: &Mount) -> Result<(), String> {
        let roots = granted.dirs.iter().map(|dir| (real(&dir.path), dir.is_read_only));
        let above = roots.filter(|(root, _)| path.starts_with(root));
        let Some((root, is_read_only)) = above.max_by_key(|(root, _)| root.components().count())
        else {
            return Err(NOT_SHARED.to_owned());
        };
        if let Some(option) = mount.options.iter().find(|option| changes_the_host(**option)) {
            return Err(format!(
                "has the option {:?}, which changes files of the host: label and own a shared directory there",
                option.as_str()
            ));
        }
        let shown = root.display();
        if is_read_only && !mount.is_read_only() {
            return Err(format!("is in {shown}, which is shared read-only: add the option `ro`"));
        }
        let below = path.strip_prefix(&root).unwrap_or(path);
        if below.as_os_str().is_empty() {
            return Ok(());
        }
        if !is_read_only {
            return Err(format!(
                "shows a part of {shown}, which steps can change: mount {shown} itself, or share it read-only (`{shown}:ro` in BOB_SHARED_DIRS)"
            ));
        }
        if self.socket.is_none() {
            return Err(format!(
                "shows a part of {shown}, which cannot be checked on the host of a remote engine: mount {shown} itself"
            ));
        }
        is_fixed(&root, below)
    }
}

/// Removes `.` and `..` from an absolute path without reading the host.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    plain
}

/// Whether an option makes the engine change the files themselves.
fn changes_the_host(option: MountOption) -> bool {
    matches!(option, MountOption::RelabelShared | MountOption::RelabelPrivate | MountOption::Chown)
}

/// Checks that only the operator can change the target of a path below a shared directory.
///
/// # Errors
/// The rest of a sentence that begins with the mount.
fn is_fixed(root: &Path, below: &Path) -> Result<(), String> {
    // Not NOFOLLOW: together with PATH it would open a link itself instead of failing.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let failed = |at: &Path, cause: rustix::io::Errno| {
        format!("cannot be resolved below {}: {}: {cause}", root.display(), at.display())
    };
    let mut at = root.to_owned();
    let mut dir =
        open(root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(|cause| failed(&at, cause))?;
    for part in below.components() {
        has_one_writer(&dir, &at)?;
        let next = openat2(&dir, part.as_os_str(), flags, Mode::empty(), resolve);
        at.push(part);
        dir = next.map_err(|cause| failed(&at, cause))?;
    }
    Ok(())
}

/// Checks that only root and the worker's user can rename the entries of a directory.
fn has_one_writer(dir: &OwnedFd, at: &Path) -> Result<(), String> {
    let stat =
        fstat(dir).map_err(|cause| format!("cannot be checked: {}: {cause}", at.display()))?;
    let is_owned = stat.st_uid == 0 || stat.st_uid == geteuid().as_raw();
    if is_owned && stat.st_mode & 0o022 == 0 {
        return Ok(());
    }
    Err(format!(
        "is below {}, which other users can write to: mount the shared directory itself, or let only its owner write there",
        at.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::super::access::SharedDir;
    use super::*;

    struct SharedRoots {
        _dir: tempfile::TempDir,
        root: PathBuf,
        access: HostAccess,
    }

    impl SharedRoots {
        /// `cache` is writable and `data` is read-only. Each has a directory `sub`.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = real(dir.path());
            for path in ["cache/sub", "data/sub", "open/sub", "other"] {
                std::fs::create_dir_all(root.join(path)).unwrap();
            }
            for path in ["data", "data/sub", "open/sub"] {
                set_mode(&root.join(path), 0o755);
            }
            set_mode(&root.join("open"), 0o777);
            let share =
                |name: &str, is_read_only| SharedDir { path: root.join(name), is_read_only };
            let dirs = vec![share("cache", false), share("data", true), share("open", true)];
            let granted = Some(Granted { dirs, ..Granted::default() });
            Self { _dir: dir, access: HostAccess { granted, ..HostAccess::default() }, root }
        }

        fn mount(&self, below: &str) -> Result<JobMount, String> {
            let (source, rest) = below.split_once(':').unwrap();
            let text = format!("{}/{source}:{rest}", self.root.display());
            let socket = Some(Path::new("/nowhere/engine"));
            MountHost { access: &self.access, socket }.resolve(text.parse().unwrap())
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_shared_directory_is_mounted_as_a_whole() {
        let shares = SharedRoots::new();
        let made = shares.mount("cache:/x").unwrap();
        assert_eq!(made.source, Source::Dir(shares.root.join("cache")));
        assert!(shares.mount("cache:/x:ro,rslave").is_ok());
        assert!(shares.mount("other/../cache:/x").is_ok());
        for refused in ["other:/x", "cache/../other:/x", ".:/x"] {
            let why = shares.mount(refused).unwrap_err();
            assert!(why.contains("BOB_SHARED_DIRS"), "{why}");
        }
    }

    #[test]
    fn no_path_outside_the_shared_directories_is_resolved() {
        let shares = SharedRoots::new();
        // Following this link would lead into a shared directory.
        symlink(shares.root.join("cache"), shares.root.join("other/link")).unwrap();
        for refused in ["other/link:/x", "cache/../other/link:/x", "other/link/../cache:/x"] {
            let why = shares.mount(refused).unwrap_err();
            assert!(why.contains("BOB_SHARED_DIRS"), "{refused}: {why}");
        }
        // The operator's own link to a shared directory is followed.
        let granted = Granted {
            dirs: vec![SharedDir { path: shares.root.join("other/link"), is_read_only: false }],
            ..Granted::default()
        };
        let access = HostAccess { granted: Some(granted), ..HostAccess::default() };
        let host = MountHost { access: &access, socket: None };
        for source in ["other/link", "cache"] {
            let text = format!("{}/{source}:/x", shares.root.display());
            let made = host.resolve(text.parse().unwrap()).unwrap();
            assert_eq!(made.source, Source::Dir(shares.root.join("cache")));
        }
    }

    #[test]
    fn a_part_of_a_directory_that_steps_can_write_to_is_refused_also_read_only() {
        let shares = SharedRoots::new();
        for refused in ["cache/sub:/x", "cache/sub:/x:ro"] {
            let why = shares.mount(refused).unwrap_err();
            assert!(why.contains("which steps can change"), "{why}");
        }
    }

    #[test]
    fn a_directory_that_is_shared_read_only_has_parts_that_are_mounted_read_only() {
        let shares = SharedRoots::new();
        let made = shares.mount("data/sub:/x:ro").unwrap();
        assert_eq!(made.source, Source::Dir(shares.root.join("data/sub")));
        assert!(shares.mount("data:/x:ro").is_ok());
        for refused in ["data:/x", "data/sub:/x", "data:/x:rw"] {
            let why = shares.mount(refused).unwrap_err();
            assert!(why.contains("add the option `ro`"), "{why}");
        }
        let why = shares.mount("data/none:/x:ro").unwrap_err();
        assert!(why.contains("cannot be resolved"), "{why}");
        let remote = MountHost { access: &shares.access, socket: None };
        let text = format!("{}/data/sub:/x:ro", shares.root.display());
        assert!(remote.resolve(text.parse().unwrap()).unwrap_err().contains("remote engine"));
    }

    #[test]
    fn a_part_that_others_could_replace_is_refused() {
        let shares = SharedRoots::new();
        let why = shares.mount("open/sub:/x:ro").unwrap_err();
        assert!(why.contains("other users can write to"), "{why}");
        // Simulates a link that replaces a directory after the name was looked up.
        std::fs::remove_dir(shares.root.join("data/sub")).unwrap();
        symlink(shares.root.join("other"), shares.root.join("data/sub")).unwrap();
        let why = is_fixed(&shares.root.join("data"), Path::new("sub/x")).unwrap_err();
        assert!(why.contains("cannot be resolved"), "{why}");
        let why = shares.mount("data/sub:/x:ro").unwrap_err();
        assert!(why.contains("does not share"), "{why}");
    }

    #[test]
    fn an_option_that_changes_files_of_the_host_is_a_persons_own() {
        let shares = SharedRoots::new();
        for option in ["z", "Z", "U"] {
            let why = shares.mount(&format!("cache:/x:{option}")).unwrap_err();
            assert!(why.contains("changes files of the host"), "{why}");
            let own = HostAccess::default();
            let own = MountHost { access: &own, socket: None };
            let text = format!("{}/cache/sub:/x:{option}", shares.root.display());
            assert!(own.resolve(text.parse().unwrap()).is_ok(), "{option}");
        }
    }
}
