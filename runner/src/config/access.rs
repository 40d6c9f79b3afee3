//! Who can change a settings file: its owner, its mode, and the directories above it.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Write permission of the group and of others.
const OTHERS_WRITE: u32 = 0o022;
/// Search permission of the group and of others.
const OTHERS_SEARCH: u32 = 0o011;
/// Sticky bit: only the owner of a file can remove or replace it in such a directory.
const STICKY: u32 = 0o1000;

/// Checks that only root and the user of this process can change an open settings file. A file can
/// be changed by writing to it, or by replacing it or a directory above it.
///
/// # Errors
/// A text that completes a sentence starting with the file's name.
pub fn check(file: &File, path: &Path) -> Result<(), String> {
    let metadata = file.metadata().map_err(|cause| format!("cannot be read: {cause}"))?;
    // Writing to a device such as /dev/null does not change its content.
    if metadata.file_type().is_char_device() {
        return Ok(());
    }
    if let Some(owner) = other_owner(&metadata) {
        return Err(format!(
            "belongs to user {owner}, who could change it; a settings file must belong to root or to \
             the user who runs bob-runner"
        ));
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Err(format!(
            "can be changed by other users (mode {:03o}); run `chmod go-w {}`",
            metadata.mode() & 0o777,
            path.display()
        ));
    }
    // A pipe, as in `--config <(...)`, has no directory.
    if metadata.is_file() { check_directories(path) } else { Ok(()) }
}

/// Checks the directories on the way to the file: those in its path, and those of the target of a
/// symbolic link.
fn check_directories(path: &Path) -> Result<(), String> {
    let whole = |path: &Path| {
        path.canonicalize().map_err(|cause| format!("cannot be found again: {cause}"))
    };
    let named = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let named = whole(named.unwrap_or_else(|| Path::new(".")))?;
    let target = whole(path)?;
    check_chain(&named)?;
    target.parent().map_or(Ok(()), check_chain)
}

/// Checks a directory and its ancestors, from the root down.
fn check_chain(dir: &Path) -> Result<(), String> {
    let mut dirs: Vec<&Path> = dir.ancestors().collect();
    dirs.reverse();
    let mut is_reachable = true;
    for dir in dirs {
        is_reachable = check_directory(dir, is_reachable)?;
    }
    Ok(())
}

/// Checks one directory. Write permission matters only if other users can reach the directory.
/// Returns whether they can reach its subdirectories.
fn check_directory(dir: &Path, is_reachable: bool) -> Result<bool, String> {
    let metadata = dir.metadata().map_err(|cause| {
        format!("is below {}, whose permissions cannot be read: {cause}", dir.display())
    })?;
    if let Some(owner) = other_owner(&metadata) {
        return Err(format!(
            "is below {}, which belongs to user {owner}, who could replace the file; move it to a \
             directory of your own",
            dir.display()
        ));
    }
    let is_writable = metadata.mode() & OTHERS_WRITE != 0 && metadata.mode() & STICKY == 0;
    if is_writable && is_reachable {
        return Err(format!(
            "is below {dir}, in which other users can replace files (mode {:03o}); run `chmod go-w \
             {dir}`",
            metadata.mode() & 0o777,
            dir = dir.display(),
        ));
    }
    Ok(is_reachable && metadata.mode() & OTHERS_SEARCH != 0)
}

/// The owner, unless it is root or this process's user.
fn other_owner(metadata: &Metadata) -> Option<u32> {
    let own = rustix::process::geteuid().as_raw();
    Some(metadata.uid()).filter(|owner| *owner != 0 && *owner != own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn verdict(path: &Path) -> Result<(), String> {
        check(&File::open(path).unwrap(), path)
    }

    #[test]
    fn a_file_that_group_or_others_can_write_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bob-runner.toml");
        std::fs::write(&path, "").unwrap();
        for (mode, accepted) in
            [(0o600, true), (0o644, true), (0o664, false), (0o646, false), (0o620, false)]
        {
            set_mode(&path, mode);
            assert_eq!(verdict(&path).is_ok(), accepted, "{mode:o}");
        }
        assert!(verdict(&path).unwrap_err().contains("run `chmod go-w "));
    }

    #[test]
    fn a_file_that_others_can_replace_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o755);
        let below = dir.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let path = below.join("bob-runner.toml");
        std::fs::write(&path, "").unwrap();
        let link = dir.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for (mode, accepted) in [(0o755, true), (0o775, false), (0o757, false), (0o1777, true)] {
            set_mode(&below, mode);
            assert_eq!(verdict(&path).is_ok(), accepted, "{mode:o}");
            assert_eq!(verdict(&link).is_ok(), accepted, "the target of a link, {mode:o}");
        }
        // Ancestors count too, and so does the directory of a link.
        set_mode(&below, 0o755);
        set_mode(dir.path(), 0o777);
        assert!(verdict(&path).unwrap_err().contains("in which other users can replace files"));
        assert!(verdict(&link).is_err());
        // Other users cannot replace what they cannot reach.
        set_mode(dir.path(), 0o700);
        set_mode(&below, 0o775);
        assert_eq!((verdict(&path), verdict(&link)), (Ok(()), Ok(())));
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skipped test must not look like one that passed")]
    fn a_file_of_another_user_is_rejected() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bob-runner.toml");
        std::fs::write(&path, "").unwrap();
        std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
        assert!(verdict(&path).unwrap_err().starts_with("belongs to user 1234"));
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        assert_eq!(verdict(&path), Ok(()));
        std::os::unix::fs::chown(dir.path(), Some(1234), None).unwrap();
        assert!(verdict(&path).unwrap_err().contains("which belongs to user 1234"));
    }

    #[test]
    fn a_device_and_a_pipe_have_no_directory_to_check() {
        assert_eq!(verdict(Path::new("/dev/null")), Ok(()));
        let (reader, _writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        assert_eq!(check(&file, Path::new("/dev/fd/63")), Ok(()));
    }
}
