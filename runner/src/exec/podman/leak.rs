//! Searches everything that a step made or changed for its secrets before a commit: the contents of
//! files, their names, the targets of links, extended attributes and the names of owners.
//!
//! It does not see a changed extended attribute of a directory that existed before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use hyper::Method;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use super::api::LONG;
use super::call::{EngineCall, Fault, Reply, bytes_of, empty};
use super::look::{Change, Line};
use super::{Podman, path};
use crate::exec::work_dir::{Entry, STAT_HEADER};
use crate::ports::{ByteStream, ExecError, SecretMatcher, StepSpec};

/// Up to this many paths are read one by one, which takes the engine about 80 ms each. For more,
/// the whole container is exported, and unchanged files are skipped.
const ONE_BY_ONE: usize = 32;
/// The maximum number of bytes in one read.
const PIECE: usize = 64 * 1024;

/// The paths that a step changed.
struct Changed(BTreeMap<String, Change>);

/// Shown in place of a path that contains a secret.
const SOME_NAME: &str = "the name of a file";

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
    fn places(&self) -> impl Iterator<Item = &str> {
        let is_dir = move |path: &str| {
            let below = format!("{path}/");
            let next = self.0.range(below.clone()..).next();
            next.is_some_and(|(next, _)| next.starts_with(&below))
        };
        let places = self.0.iter().filter(move |(path, change)| match change {
            Change::Deleted => false,
            Change::Added => !self.is_below_new(path),
            Change::Changed => !self.is_below_new(path) && !is_dir(path),
        });
        places.map(|(path, _)| path.as_str())
    }
}

/// The first file of an archive that contains something forbidden. `below` is the parent of its
/// paths. Unchanged files are skipped.
async fn search(
    tar: ByteStream,
    below: &str,
    changed: &Changed,
    forbidden: &dyn SecretMatcher,
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
        // The path contains the secret, so it must not be shown.
        if forbidden.search().finds(path.as_bytes()) {
            return Ok(Some(SOME_NAME.to_owned()));
        }
        if has_secret_beside(&mut entry, forbidden).await? {
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

/// Whether an entry contains something forbidden outside its path and its contents: in the target
/// of a link, the names of its owner and its group, or an extended attribute.
async fn has_secret_beside<R>(
    entry: &mut tokio_tar::Entry<R>,
    forbidden: &dyn SecretMatcher,
) -> std::io::Result<bool>
where
    R: tokio::io::AsyncRead + Unpin,
{
    let finds = |bytes: &[u8]| forbidden.search().finds(bytes);
    let header = entry.header();
    if [header.username_bytes(), header.groupname_bytes()].into_iter().flatten().any(finds) {
        return Ok(true);
    }
    if entry.link_name_bytes()?.is_some_and(|target| finds(&target)) {
        return Ok(true);
    }
    for record in entry.pax_extensions().await?.into_iter().flatten() {
        let record = record?;
        if finds(record.key_bytes()) || finds(record.value_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Why the changes of a step could not be searched.
enum NotSearched {
    Fault(Fault),
    /// The list of changed paths is too long.
    TooMany,
}

impl From<Fault> for NotSearched {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The first part of a search, which reads only the list of changed paths.
struct Listed {
    changed: Changed,
    /// The places to read. `None` if there are too many to read them one by one.
    places: Option<Vec<String>>,
    has_secret_name: bool,
}

/// One place of a container.
enum LeakLocation {
    /// A symbolic link. The engine follows it.
    Link,
    Archive(ByteStream),
}

impl Podman {
    /// Fails if a step left one of its secrets in its files.
    pub(super) async fn has_no_secrets(&self, id: &str, step: &StepSpec) -> Result<(), ExecError> {
        let Some(forbidden) = &step.secrets.forbidden else { return Ok(()) };
        let leak = |path| ExecError::SecretLeak { step: step.name.clone(), path };
        match self.find_secret(id, forbidden).await {
            Ok(None) => Ok(()),
            Ok(Some(path)) => Err(leak(path)),
            Err(NotSearched::TooMany) => Err(ExecError::Unsupported(format!(
                "step {} has secrets and changed too many files to search them for the secrets: \
                 do that work in a step without secrets, or remove the files before the step ends",
                step.name
            ))),
            Err(NotSearched::Fault(fault)) => {
                Err(fault.at("looking for secrets in what a step left", &self.http))
            }
        }
    }

    async fn find_secret(
        &self,
        id: &str,
        forbidden: &Arc<dyn SecretMatcher>,
    ) -> Result<Option<String>, NotSearched> {
        let mut link = self.http.link();
        // Keep the files mounted: the engine's cleanup after the step could unmount them.
        link.mount(id).await?;
        let reply =
            link.call(EngineCall::get(format!("/containers/{id}/changes"))).await?.good()?;
        if reply.is_too_long {
            return Err(NotSearched::TooMany);
        }
        let searching = Arc::clone(forbidden);
        // The list can have a million paths.
        let listed = tokio::task::spawn_blocking(move || Listed::of(&reply, &*searching)).await;
        let listed = listed.map_err(|cause| Fault::Malformed(cause.to_string()))??;
        if listed.has_secret_name {
            return Ok(Some(SOME_NAME.to_owned()));
        }
        let Listed { changed, places, .. } = listed;
        let Some(places) = places else { return self.find_anywhere(id, &changed, forbidden).await };
        let mut above_links = BTreeSet::new();
        for place in &places {
            let parent = place.rsplit_once('/').map_or("", |(parent, _)| parent);
            match self.place(id, place).await? {
                LeakLocation::Link => {
                    above_links.insert(parent.to_owned());
                }
                LeakLocation::Archive(archive) => {
                    let found = search(archive, parent, &changed, &**forbidden).await;
                    if let Some(path) = read(found)? {
                        return Ok(Some(path));
                    }
                }
            }
        }
        // The engine describes a link by its target. Only the archive of its directory has its
        // text.
        if above_links.contains("") {
            return self.find_anywhere(id, &changed, forbidden).await;
        }
        for dir in above_links {
            let below = dir.rsplit_once('/').map_or("", |(parent, _)| parent);
            let archive = self.archive(id, &dir).await?;
            if let Some(path) = read(search(archive, below, &changed, &**forbidden).await)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Searches the changes in an export of the whole container.
    async fn find_anywhere(
        &self,
        id: &str,
        changed: &Changed,
        forbidden: &Arc<dyn SecretMatcher>,
    ) -> Result<Option<String>, NotSearched> {
        // The engine writes the whole of it to a file first.
        let all = self.streamed(LONG, &format!("/containers/{id}/export")).await?;
        Ok(read(search(all, "", changed, &**forbidden).await)?)
    }

    async fn place(&self, id: &str, at: &str) -> Result<LeakLocation, Fault> {
        let query = path::query(&[("path", at)]);
        let path = format!("/containers/{id}/archive?{query}");
        let answer = self.http.open(&Method::GET, &path, &[], empty()).await?;
        let stat = answer.headers().get(STAT_HEADER).map(|value| value.as_bytes());
        match Entry::answered(answer.status().as_u16(), stat) {
            // The engine lists the place as changed, so it exists. It is a link to something that
            // does not.
            Some(Ok(Entry::Link(_) | Entry::Missing)) => return Ok(LeakLocation::Link),
            Some(Err(cause)) => return Err(Fault::Malformed(cause)),
            Some(Ok(Entry::Directory | Entry::Other)) | None => {}
        }
        if answer.status().is_success() {
            return Ok(LeakLocation::Archive(bytes_of(answer.into_body())));
        }
        let status = answer.status().as_u16();
        match super::call::read(answer).await?.good() {
            Err(fault) if Entry::is_circle(fault.refusal()) => Ok(LeakLocation::Link),
            Err(fault) => Err(fault),
            Ok(_) => Err(Fault::Malformed(format!("status {status}"))),
        }
    }
}

impl Listed {
    fn of(reply: &Reply, forbidden: &dyn SecretMatcher) -> Result<Self, Fault> {
        let lines: Option<Vec<Line>> = reply.json()?;
        let changed = Changed(lines.into_iter().flatten().map(Line::change).collect());
        let names = changed.0.iter().filter(|(_, change)| **change != Change::Deleted);
        let mut names = names.map(|(path, _)| path);
        let has_secret_name = names.any(|path| forbidden.search().finds(path.as_bytes()));
        let first = changed.places().take(ONE_BY_ONE + 1);
        let first: Vec<String> = first.map(ToOwned::to_owned).collect();
        let places = (first.len() <= ONE_BY_ONE).then_some(first);
        Ok(Self { changed, places, has_secret_name })
    }
}

fn read(found: std::io::Result<Option<String>>) -> Result<Option<String>, Fault> {
    found.map_err(|cause| Fault::Malformed(format!("an archive that cannot be read: {cause}")))
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
        let places: Vec<&str> = changed.places().collect();
        assert_eq!(places, ["/etc-more", "/etc/passwd", "/new"]);
        assert!(changed.has("/new/dir/file") && changed.has("/new/unlisted"));
        assert!(!changed.has("/old") && !changed.has("/usr/bin"));
    }
}
