//! The secret with which a server signs and verifies tokens if its settings contain no keys.
//!
//! It is kept in the data directory, in a file that only its user can read. Whoever can read it is
//! the user who runs the server.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use uuid::Uuid;

use super::make_dir;
use crate::ports::Secret;

const FILE: &str = "http-secret";

/// The bits of a mode that give other users access.
const OF_OTHERS: u32 = 0o077;

/// Reads the secret of a data directory, and makes it first if needed. Servers that start
/// concurrently get the same one.
///
/// # Errors
/// If the file cannot be read or written, or if others can read it.
pub(super) fn read_or_create(dir: &Path) -> io::Result<Secret> {
    match read(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    make_dir(dir).map_err(|unusable| unusable.cause)?;
    // 244 random bits. The file gets its name when it is complete, and has the mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    write!(file, "{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(dir.join(FILE)) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        Ok(_) | Err(_) => read(dir),
    }
}

/// Reads the secret of a data directory.
///
/// # Errors
/// If the file cannot be read, or if others can read it.
pub(super) fn read(dir: &Path) -> io::Result<Secret> {
    let path = dir.join(FILE);
    let about = |cause: io::Error| {
        io::Error::new(cause.kind(), format!("cannot read {}: {cause}", path.display()))
    };
    let mut file = std::fs::File::open(&path).map_err(about)?;
    let mode = file.metadata()?.mode();
    if mode & OF_OTHERS != 0 {
        let text = format!(
            "other users can read {}: remove it, so that the server makes a new secret",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let mut secret = Vec::new();
    file.read_to_end(&mut secret).map_err(about)?;
    Ok(Secret::new(secret))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_only_its_user_can_read_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        assert_eq!(read(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
        let made = read_or_create(&dir).unwrap();
        assert_eq!(made.expose().len(), 64);
        assert_eq!(read_or_create(&dir).unwrap().expose(), made.expose());
        assert_eq!(read(&dir).unwrap().expose(), made.expose());
        let mode = std::fs::metadata(dir.join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_secret_that_other_users_can_read_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        read_or_create(dir.path()).unwrap();
        std::fs::set_permissions(dir.path().join(FILE), Permissions::from_mode(0o640)).unwrap();
        let refused = read_or_create(dir.path()).unwrap_err().to_string();
        assert!(refused.starts_with("other users can read "), "{refused}");
    }
}
