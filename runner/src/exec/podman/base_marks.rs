//! Marks on the base images that bob-runner pulled, with the hour of their last use. A mark is an
//! additional name: `localhost/bob-pulled/<its id>/<digest of the pulled name>:<hour>`.
//!
//! An image with a name besides its marks and the one it was pulled by also belongs to someone
//! else, and stays.

use std::collections::HashSet;
use std::sync::Arc;

use protocol::time::Millis;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio_util::task::TaskTracker;

use super::call::{EngineCall, Fault, saw_a_removal};
use super::http::Http;
use super::path;
use crate::ports::{BaseImage, matches_reference};

/// The repository prefix of marks.
const MARK: &str = "localhost/bob-pulled/";
/// The tag of a new mark. The next sweep replaces it with the time.
const NEW: &str = "new";
pub(super) const HOUR_MILLIS: i64 = 3_600_000;
/// How many digits of an id, and of a name's digest, a mark contains.
const DIGITS: usize = 32;
/// How often a listing of images is retried.
const LISTINGS: u32 = 5;

/// Marks pulled images in background tasks.
#[derive(Debug, Default)]
pub(super) struct BaseMarker(TaskTracker);

/// An image in a listing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) id: String,
    #[serde(default)]
    pub(super) parent_id: String,
    /// All names, including those by digest, which other fields omit.
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    size: u64,
    /// The number of containers that use it.
    #[serde(default)]
    containers: i64,
}

/// A mark and the hour in its tag.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BaseMark<'a> {
    pub(super) repository: &'a str,
    pub(super) when: &'a str,
}

impl BaseMark<'_> {
    pub(super) fn hour(&self) -> Option<i64> {
        self.when.parse().ok()
    }

    fn is_of(&self, name: &str) -> bool {
        self.repository.rsplit('/').next() == Some(digits_of(name).as_str())
    }
}

fn digits_of(name: &str) -> String {
    hex::encode(&Sha256::digest(name)[..DIGITS / 2])
}

/// The repository of the mark for an image pulled by a name. It contains the id because a later
/// pull moves the name to a newer image, and the older image would lose its mark.
fn repository(id: &str, name: &str) -> String {
    format!("{MARK}{}/{}", id.get(..DIGITS).unwrap_or(id), digits_of(name))
}

impl Listed {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().flatten().map(String::as_str)
    }

    fn mark<'a>(&self, name: &'a str) -> Option<BaseMark<'a>> {
        let (repository, when) = name.rsplit_once(':')?;
        let (id, _) = repository.strip_prefix(MARK)?.split_once('/')?;
        // Ignore the mark of another image: a user has moved it here.
        (id.len() == DIGITS && self.id.starts_with(id)).then_some(BaseMark { repository, when })
    }

    pub(super) fn marks(&self) -> Vec<BaseMark<'_>> {
        self.names().filter_map(|name| self.mark(name)).collect()
    }

    /// Every name that is not a mark.
    fn others(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| self.mark(name).is_none())
    }

    /// The image as a base that bob-runner pulled. `None` if it did not pull it. `parents` are the
    /// images that other images build on.
    pub(super) fn as_base(&self, parents: &HashSet<&str>) -> Option<BaseImage> {
        let marks = self.marks();
        if marks.is_empty() {
            return None;
        }
        let (mut names, mut theirs) = (Vec::new(), false);
        for name in self.others() {
            if marks.iter().any(|mark| mark.is_of(name)) {
                names.push(name.to_owned());
            } else {
                theirs = true;
            }
        }
        let hour = marks.iter().filter_map(BaseMark::hour).max().unwrap_or(0);
        Some(BaseImage {
            in_use: theirs || self.containers != 0 || parents.contains(self.id.as_str()),
            id: self.id.clone(),
            names,
            bytes: self.size,
            used: Millis(hour.saturating_mul(HOUR_MILLIS)),
        })
    }

    /// The marks to add and to remove so that the image counts as used at `hour`.
    pub(super) fn moved(&self, hour: i64) -> Vec<(String, Vec<String>)> {
        let mut repositories: Vec<&str> = self.marks().iter().map(|mark| mark.repository).collect();
        repositories.sort_unstable();
        repositories.dedup();
        let now = hour.to_string();
        let stale = |repository: &str| {
            let marks = self.marks().into_iter().filter(|mark| mark.repository == repository);
            marks.map(|mark| mark.when.to_owned()).filter(|when| *when != now).collect()
        };
        let moved = repositories.into_iter().map(|one| (one.to_owned(), stale(one)));
        moved.filter(|(_, stale): &(_, Vec<String>)| !stale.is_empty()).collect()
    }
}

pub(super) async fn list(http: &Arc<Http>) -> Result<Vec<Listed>, Fault> {
    let mut tries = 0;
    loop {
        match http.call(EngineCall::get("/images/json?all=true")).await?.good() {
            Ok(reply) => return reply.json(),
            Err(fault) if saw_a_removal(fault.refusal()) && tries < LISTINGS => tries += 1,
            Err(fault) => return Err(fault),
        }
    }
}

pub(super) async fn tag(
    http: &Arc<Http>,
    id: &str,
    repository: &str,
    tag: &str,
) -> Result<(), Fault> {
    let query = path::query(&[("repo", repository), ("tag", tag)]);
    http.call(EngineCall::post(format!("/images/{id}/tag?{query}"))).await?.good().map(drop)
}

pub(super) async fn untag(
    http: &Arc<Http>,
    id: &str,
    repository: &str,
    tag: &str,
) -> Result<(), Fault> {
    let query = path::query(&[("repo", repository), ("tag", tag)]);
    match http.call(EngineCall::post(format!("/images/{id}/untag?{query}"))).await?.good() {
        Ok(_) => Ok(()),
        // Another worker was faster.
        Err(fault) if fault.refusal().contains("not known") || fault.status() == Some(404) => {
            Ok(())
        }
        Err(fault) => Err(fault),
    }
}

/// Removes one name of an image. Removing the last name removes the image, unless it is in use.
/// Returns `false` if it is in use.
pub(super) async fn remove_name(http: &Arc<Http>, name: &str) -> Result<bool, Fault> {
    let reply = http.call(EngineCall::delete(format!("/images/{}", path::name(name)))).await?;
    match reply.good() {
        Ok(_) => Ok(true),
        Err(fault) if fault.status() == Some(404) => Ok(true),
        Err(fault) if fault.status() == Some(409) => Ok(false),
        Err(fault) => Err(fault),
    }
}

async fn mark(http: &Arc<Http>, id: &str, reference: &str) -> Result<(), Fault> {
    let images = list(http).await?;
    let Some(image) = images.iter().find(|image| image.id == id) else { return Ok(()) };
    let Some(name) = image.others().find(|name| matches_reference(name, reference)) else {
        // The image was pulled by an alias of the engine, and its full name is unknown.
        return Ok(());
    };
    if image.marks().iter().any(|mark| mark.is_of(name)) {
        return Ok(());
    }
    tag(http, id, &repository(id, name), NEW).await
}

impl BaseMarker {
    /// Marks an image as pulled by bob-runner. If that fails, the image is never removed.
    pub(super) fn pulled(&self, http: &Arc<Http>, id: &str, reference: &str) {
        let (http, id, reference) = (Arc::clone(http), id.to_owned(), reference.to_owned());
        drop(self.0.spawn(async move {
            if let Err(fault) = mark(&http, &id, &reference).await {
                tracing::warn!(image = reference, %fault, "an image that was pulled is not noted as such, and stays");
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "5064424ab6775ca37051e263a2ee3e4f2c05e5476610ee4eeee53710296a0541";
    const NAME: &str = "docker.io/library/alpine:3";

    fn image(names: &[&str]) -> Listed {
        let names = Some(names.iter().map(|name| (*name).to_owned()).collect());
        Listed { id: ID.to_owned(), names, size: 7, ..Listed::default() }
    }

    fn marked(name: &str, when: &str) -> String {
        format!("{}:{when}", repository(ID, name))
    }

    #[test]
    fn an_image_is_ours_by_its_mark_and_its_use_by_the_latest() {
        let (older, newer) = (marked(NAME, "495000"), marked(NAME, "495002"));
        let base = image(&[NAME, &older, &newer]).as_base(&HashSet::new()).unwrap();
        assert_eq!((base.names, base.in_use), (vec![NAME.to_owned()], false));
        assert_eq!((base.used, base.bytes), (Millis(495_002 * HOUR_MILLIS), 7));
        assert_eq!(image(&[NAME]).as_base(&HashSet::new()), None, "a user pulled it by hand");
        let elsewhere = format!("{MARK}{}/{}:1", "0".repeat(DIGITS), digits_of(NAME));
        assert_eq!(image(&[NAME, &elsewhere]).as_base(&HashSet::new()), None);
        let nameless = image(&[&older]).as_base(&HashSet::new()).unwrap();
        assert!(nameless.names.is_empty() && !nameless.in_use, "its name went to a newer one");
    }

    #[test]
    fn what_somebody_has_named_or_built_upon_is_in_use() {
        let mark = marked(NAME, NEW);
        let in_use = |image: &Listed, parents: &[&str]| {
            image.as_base(&parents.iter().copied().collect()).unwrap().in_use
        };
        let ours = image(&[NAME, &mark]);
        assert!(!in_use(&ours, &[""]));
        assert!(in_use(&ours, &["x", ID]), "an image stands on it");
        assert!(in_use(&Listed { containers: 1, ..ours }, &[]));
        for theirs in
            ["localhost/mine:1", "docker.io/library/alpine:latest", "localhost/bob-base:r-1"]
        {
            assert!(in_use(&image(&[NAME, &mark, theirs]), &[]), "{theirs}");
        }
        let digest = "quay.io/a@sha256:0a";
        assert!(!in_use(&image(&[digest, &marked(digest, NEW)]), &[]));
        assert!(in_use(&image(&[NAME, digest, &mark]), &[]));
    }

    #[test]
    fn a_mark_is_moved_once_an_hour() {
        assert!(image(&[NAME, &marked(NAME, "495000")]).moved(495_000).is_empty());
        let (new, old) = (marked(NAME, NEW), marked(NAME, "494000"));
        let moved = image(&[NAME, &new, &old]).moved(495_000);
        let stale = vec![NEW.to_owned(), "494000".to_owned()];
        assert_eq!(moved, [(repository(ID, NAME), stale)]);
    }
}
