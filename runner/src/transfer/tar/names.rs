//! Checks that no entry or link leads out of its mount.

use std::collections::HashSet;

use super::entry::EntryKind;

/// The maximum length of an entry's name, which is also the system's limit.
const LONGEST: usize = 4096;
/// The maximum memory for the names of an archive's links, in bytes.
const LINK_BYTES: usize = 16 << 20;

/// The components of a path below the target, without `.` and empty ones.
pub(in crate::transfer) fn cleaned(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.starts_with(b"/") {
        return Err("has an absolute name");
    }
    if path.contains(&0) {
        return Err("has a name with a NUL in it");
    }
    if path.len() > LONGEST {
        return Err("has a name of more than 4096 bytes");
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("leaves its target by `..`"),
            part => parts.push(part),
        }
    }
    Ok(parts)
}

/// The target of an entry.
pub(super) enum Target {
    /// Not a link.
    None,
    /// A symbolic link, unchanged.
    Symbolic(Vec<u8>),
    /// A hard link to another entry, as path components.
    Hard(Vec<Vec<u8>>),
}

impl Target {
    /// Parses the target of an entry and checks that it is inside the mount.
    pub(super) fn of(kind: EntryKind, path: &[&[u8]], link: &[u8]) -> Result<Self, String> {
        let shown = String::from_utf8_lossy(link);
        match kind {
            EntryKind::Symlink => {
                if inside(path.len().saturating_sub(1), link) {
                    Ok(Self::Symbolic(link.to_vec()))
                } else {
                    Err(format!("is a link to {shown:?}, which may lie outside of its target"))
                }
            }
            EntryKind::HardLink => match cleaned(link) {
                Ok(parts) if !parts.is_empty() => {
                    Ok(Self::Hard(parts.into_iter().map(<[u8]>::to_vec).collect()))
                }
                Ok(_) | Err(_) => {
                    Err(format!("is a hard link to {shown:?}, which lies outside of its target"))
                }
            },
            EntryKind::File | EntryKind::Directory => Ok(Self::None),
        }
    }

    /// The target as written below a mount.
    pub(super) fn within(&self, mount: &[u8]) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            // It is relative to its own directory, which moves too.
            Self::Symbolic(link) => link.clone(),
            Self::Hard(parts) => [&[mount.to_vec()], parts.as_slice()].concat().join(&b'/'),
        }
    }
}

/// Whether a symbolic link in a directory of this depth stays inside.
///
/// `..` is allowed only at the beginning. After a name, it would go up from wherever another link
/// leads. Entries are only in real directories (see [`Links`]), so each link stays inside by
/// itself, and so does a chain of links.
fn inside(depth: usize, link: &[u8]) -> bool {
    if link.is_empty() || link.starts_with(b"/") || link.contains(&0) || link.len() > LONGEST {
        return false;
    }
    let parts = link.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let (mut ups, mut names) = (0, 0);
    for part in parts {
        if part != b".." {
            names += 1;
        } else if names > 0 {
            return false;
        } else {
            ups += 1;
        }
    }
    ups <= depth
}

/// The links that an archive has created so far. No entry may be placed below one.
#[derive(Default)]
pub(super) struct Links {
    paths: HashSet<Vec<u8>>,
    bytes: usize,
}

impl Links {
    /// Accepts an entry unless it or its target is below a link.
    pub(super) fn admit(&mut self, path: &[&[u8]], target: &Target) -> Result<(), String> {
        if path.is_empty() && !matches!(target, Target::None) {
            return Err("is a link in place of the whole target".into());
        }
        self.check(path, "lies")?;
        let is_link = match target {
            Target::None => false,
            Target::Symbolic(_) => true,
            Target::Hard(parts) => {
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                self.check(&parts, "is a hard link to what lies")?;
                self.paths.contains(&parts.join(&b'/'))
            }
        };
        if is_link {
            let path = path.join(&b'/');
            self.bytes += path.len();
            if self.bytes > LINK_BYTES {
                return Err("is one link too many: the archive has too many of them".into());
            }
            self.paths.insert(path);
        }
        Ok(())
    }

    fn check(&self, path: &[&[u8]], what: &str) -> Result<(), String> {
        if self.paths.is_empty() {
            return Ok(());
        }
        for end in 1..path.len() {
            let above = path[..end].join(&b'/');
            if self.paths.contains(&above) {
                let above = String::from_utf8_lossy(&above).into_owned();
                return Err(format!("{what} behind the link {above:?} of the same archive"));
            }
        }
        Ok(())
    }
}
