//! Distinguishes changes of `/etc` by the engine from those by a step.
//!
//! The engine puts its own files into `/etc` of each container (`hostname`, `hosts`, `mtab`,
//! `resolv.conf`), and a commit contains them if the image did not have them. Its list of changes
//! omits these files, but contains the directory.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio_util::io::StreamReader;

use super::Podman;
use super::api::LONG;
use super::call::{EngineCall, Fault, Reply};
use super::look::Change;
use crate::ports::ByteStream;

const DIRECTORY: &str = "/etc";
/// The files that the engine creates in `/etc`.
const OF_THE_ENGINE: [&str; 4] = ["hostname", "hosts", "mtab", "resolv.conf"];

/// Mode, user, group, and extended attributes of a directory.
type Attributes = (u32, u64, u64, Vec<(String, Vec<u8>)>);

/// `/etc` of an image.
#[derive(Debug, Default, PartialEq, Eq)]
struct Etc {
    directory: Option<Attributes>,
    /// Names of the files in it.
    files: BTreeSet<String>,
}

impl Etc {
    /// Whether this differs from `after` only in the engine's files. The engine itself compares
    /// files that are in both, and lists those that differ.
    fn differs_by_the_engine_alone(&self, after: &Self) -> bool {
        let mut added = after.files.difference(&self.files);
        self.directory == after.directory
            && self.files.is_subset(&after.files)
            && after.files.len() > self.files.len()
            && added.all(|name| OF_THE_ENGINE.contains(&name.as_str()))
    }
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "Id")]
    id: String,
}

impl Podman {
    /// Removes the change of `/etc` if only the engine made it. The change stays if that cannot be
    /// determined.
    pub(super) async fn without_the_engines_own(
        &self,
        changes: Vec<(String, Change)>,
        before: Option<&str>,
        after: &str,
    ) -> Vec<(String, Change)> {
        let is_etc =
            |(path, change): &(String, Change)| path == DIRECTORY && *change == Change::Changed;
        let is_below = |(path, _): &(String, Change)| path.starts_with("/etc/");
        let Some(before) = before else { return changes };
        if !changes.iter().any(is_etc) || changes.iter().any(is_below) {
            return changes;
        }
        let both =
            async { Ok::<_, Fault>((self.etc_of(before).await?, self.etc_of(after).await?)) };
        match both.await {
            Ok((before, after)) if before.differs_by_the_engine_alone(&after) => {
                changes.into_iter().filter(|change| !is_etc(change)).collect()
            }
            Ok(_) => changes,
            Err(fault) => {
                tracing::debug!(%fault, "a change of /etc is not looked into");
                changes
            }
        }
    }

    /// Reads `/etc` of an image, through a container that is never started. An archive of the path
    /// would not contain the owner of the directory.
    async fn etc_of(&self, image: &str) -> Result<Etc, Fault> {
        let mut link = self.http.link();
        let body = json!({ "image": image, "command": ["true"], "netns": { "nsmode": "none" } });
        let json =
            serde_json::to_vec(&body).map_err(|cause| Fault::Malformed(cause.to_string()))?;
        let create =
            EngineCall { json: Some(json.into()), ..EngineCall::post("/containers/create") };
        let created = link.call(create).await.and_then(Reply::good)?.json::<Created>()?;
        let read = match self.streamed(LONG, &format!("/containers/{}/export", created.id)).await {
            Ok(tar) => read(tar).await.map_err(|cause| Fault::Malformed(cause.to_string())),
            Err(fault) => Err(fault),
        };
        link.remove(&created.id).await?;
        read
    }
}

/// Reads `/etc` in the export of a container, and no entry after it.
async fn read(tar: ByteStream) -> std::io::Result<Etc> {
    let mut tar = tokio_tar::Archive::new(StreamReader::new(tar));
    let mut entries = tar.entries()?;
    let mut etc = Etc::default();
    while let Some(entry) = entries.next().await {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()?).into_owned();
        let path = path.trim_start_matches("./").trim_matches('/').to_owned();
        if path == "etc" {
            let header = entry.header();
            let owner = (header.mode()?, header.uid()?, header.gid()?);
            let mut attributes = Vec::new();
            if let Some(extensions) = entry.pax_extensions().await? {
                for extension in extensions {
                    let extension = extension?;
                    let key = String::from_utf8_lossy(extension.key_bytes()).into_owned();
                    if key.starts_with("SCHILY.xattr.") {
                        attributes.push((key, extension.value_bytes().to_vec()));
                    }
                }
            }
            etc.directory = Some((owner.0, owner.1, owner.2, attributes));
        } else if let Some(name) = path.strip_prefix("etc/") {
            etc.files.insert(name.to_owned());
        } else if etc.directory.is_some() {
            break;
        }
    }
    Ok(etc)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc(mode: u32, files: &[&str]) -> Etc {
        Etc {
            directory: Some((mode, 0, 0, Vec::new())),
            files: files.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn only_the_engines_files_are_its_own_change() {
        let before = etc(0o755, &["group"]);
        let differs = |mode, files: &[&str]| before.differs_by_the_engine_alone(&etc(mode, files));
        assert!(differs(0o755, &["group", "hosts", "mtab"]));
        assert!(!differs(0o700, &["group", "hosts", "mtab"]), "the step changed the directory");
        assert!(!differs(0o755, &["group", "hosts", "new"]), "the step added a file");
        assert!(!differs(0o755, &["hosts"]), "the step removed a file");
        assert!(!differs(0o755, &["group"]), "the engine did nothing");
    }
}
