//! Searches the files that a step made or changed, and their names, for its secrets before a
//! commit.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use super::Podman;
use super::api::LONG;
use super::call::{Ask, Fault, Reply};
use super::look::{Change, Line};
use crate::ports::{ByteStream, ExecError, Forbidden, StepSpec};

/// Up to this many paths are read one by one, which takes the engine about 80 ms each. For more,
/// the whole container is exported, and unchanged files are skipped.
const ONE_BY_ONE: usize = 32;
/// The maximum number of bytes in one read.
const PIECE: usize = 64 * 1024;

/// The paths that a step changed.
struct Changed(BTreeMap<String, Change>);

impl Changed {
    /// Whether a path is new or changed.
    fn has(&self, path: &str) -> bool {
        self.0.get(path).is_some_and(|change| *change != Change::Deleted) || self.is_below_new(path)
    }

    fn is_below_new(&self, path: &str) -> bool {
        let mut above = path;
        while let Some((parent, _)) = above.rsplit_once('/') {
            if self.0.get(parent) == Some(&Change::Added) {
                return true;
            }
            above = parent;
        }
        false
    }

    /// The paths whose archives contain every change: new paths with their contents, and changed
    /// files.
    fn places(&self) -> Vec<&str> {
        let is_dir = |path: &str| {
            let below = format!("{path}/");
            let next = self.0.range(below.clone()..).next();
            next.is_some_and(|(next, _)| next.starts_with(&below))
        };
        let places = self.0.iter().filter(|(path, change)| match change {
            Change::Deleted => false,
            Change::Added => !self.is_below_new(path),
            Change::Changed => !self.is_below_new(path) && !is_dir(path),
        });
        places.map(|(path, _)| path.as_str()).collect()
    }
}

/// The first file of an archive that contains something forbidden. `below` is the parent of its
/// paths. Unchanged files are skipped.
async fn search(
    tar: ByteStream,
    below: &str,
    changed: &Changed,
    forbidden: &dyn Forbidden,
) -> std::io::Result<Option<String>> {
    let mut tar = tokio_tar::Archive::new(StreamReader::new(tar));
    let mut entries = tar.entries()?;
    let mut piece = vec![0; PIECE];
    while let Some(entry) = entries.next().await {
        let mut entry = entry?;
        let inside = String::from_utf8_lossy(&entry.path_bytes()?).into_owned();
        let path = format!("{below}/{}", inside.trim_matches('/'));
        if !changed.has(&path) {
            continue;
        }
        if let Some(link) = entry.link_name_bytes()?
            && forbidden.search().finds(&link)
        {
            return Ok(Some(path));
        }
        let mut search = forbidden.search();
        loop {
            let read = entry.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            if search.finds(piece.get(..read).unwrap_or_default()) {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

impl Podman {
    /// Fails if a step left one of its secrets in its files.
    pub(super) async fn has_no_secrets(&self, id: &str, step: &StepSpec) -> Result<(), ExecError> {
        let Some(forbidden) = &step.secrets.forbidden else { return Ok(()) };
        let found = self.find_secret(id, &**forbidden).await;
        match found
            .map_err(|fault| fault.at("looking for secrets in what a step left", &self.http))?
        {
            Some(path) => Err(ExecError::SecretLeak { step: step.name.clone(), path }),
            None => Ok(()),
        }
    }

    async fn find_secret(
        &self,
        id: &str,
        forbidden: &dyn Forbidden,
    ) -> Result<Option<String>, Fault> {
        let mut link = self.http.link();
        // Keep the files mounted: the engine's cleanup after the step could unmount them.
        link.mount(id).await?;
        let reply = link.call(Ask::get(format!("/containers/{id}/changes"))).await;
        let lines: Option<Vec<Line>> = reply.and_then(Reply::good)?.json()?;
        let changed = lines.into_iter().flatten().map(Line::change);
        let changed = Changed(changed.collect());
        let names = changed.0.iter().filter(|(_, change)| **change != Change::Deleted);
        let mut names = names.map(|(path, _)| path);
        if names.any(|path| forbidden.search().finds(path.as_bytes())) {
            // The path contains the secret, so it must not be shown.
            return Ok(Some("the name of a file".to_owned()));
        }
        let places = changed.places();
        if places.len() > ONE_BY_ONE {
            // The engine writes the whole of it to a file first.
            let all = self.streamed(LONG, &format!("/containers/{id}/export")).await?;
            return read(search(all, "", &changed, forbidden).await);
        }
        for place in places {
            let archive = match self.archive(id, place).await {
                Ok(archive) => archive,
                // A dangling symbolic link.
                Err(fault) if fault.status() == Some(404) => continue,
                Err(fault) => return Err(fault),
            };
            let below = place.rsplit_once('/').map_or("", |(parent, _)| parent);
            if let Some(path) = read(search(archive, below, &changed, forbidden).await)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

fn read(found: std::io::Result<Option<String>>) -> Result<Option<String>, Fault> {
    found.map_err(|cause| Fault::Garbled(format!("an archive that cannot be read: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_changed_is_read_once() {
        let of = |changes: &[(&str, Change)]| {
            Changed(changes.iter().map(|(path, change)| ((*path).to_owned(), *change)).collect())
        };
        let changed = of(&[
            ("/etc", Change::Changed),
            ("/etc/passwd", Change::Changed),
            ("/etc-more", Change::Changed),
            ("/new", Change::Added),
            ("/new/dir", Change::Added),
            ("/new/dir/file", Change::Added),
            ("/old", Change::Deleted),
        ]);
        assert_eq!(changed.places(), ["/etc-more", "/etc/passwd", "/new"]);
        assert!(changed.has("/new/dir/file") && changed.has("/new/unlisted"));
        assert!(!changed.has("/old") && !changed.has("/usr/bin"));
    }
}
