//! Images: the configuration of base images, a cache of committed images, and the decision when a
//! chain of commits is squashed into one layer.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use protocol::id::RunId;
use protocol::names;
use serde::{Deserialize, Serialize};

use super::call::Fault;

/// The repository prefix of committed images: `<this>/<chain>:<run id>`. A run id can have capitals
/// and 128 characters, which only a tag allows.
pub(super) const TAGS: &str = "localhost/bob-run";
/// The chain name prefix of images that were taken over from another owner or run.
pub(super) const RESUME: &str = "resume-";
/// The tag that keeps an unnamed base image when the last image on it is removed.
pub(super) const PIN: &str = "localhost/bob-base";

/// The configuration of a base image, which applies to every step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    pub(super) id: String,
    pub(super) env: Vec<(String, String)>,
    pub(super) entrypoint: Vec<String>,
    pub(super) user: String,
    pub(super) work_dir: String,
    pub(super) layers: u32,
    pub(super) size: u64,
    pub(super) healthcheck: bool,
    // Older versions wrote labels without the fields from here on.
    #[serde(default)]
    pub(super) cmd: Vec<String>,
    /// Whether it is in Docker's format, the only one that supports a health check.
    #[serde(default)]
    pub(super) is_docker_format: bool,
    /// The stop signal. Empty if the image does not set one. podman 5 does not copy it at a commit.
    #[serde(default)]
    pub(super) stop_signal: String,
}

impl Base {
    /// The label that stores it on every image built on it. A later owner can read it there even if
    /// the base image is gone.
    pub(super) fn as_label(&self) -> String {
        // Cannot fail: it has only texts and numbers.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The format of images built on it.
    pub(super) fn format(&self) -> &'static str {
        if self.is_docker_format { "docker" } else { "oci" }
    }
}

/// The needed fields of an inspected image. podman-api's type fails if a newer engine changes the
/// type of any field.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub(super) id: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    config: Option<Config>,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    pub(super) annotations: Option<HashMap<String, String>>,
    #[serde(default, rename = "RootFS")]
    root_fs: Option<RootFs>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    repo_digests: Option<Vec<String>>,
    #[serde(default)]
    healthcheck: Option<serde_json::Value>,
    #[serde(default)]
    manifest_type: String,
    /// Empty if there is none.
    #[serde(default)]
    parent: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    stop_signal: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Inspected {
    /// The image below it, if the engine knows it.
    pub(super) fn parent(&self) -> Option<&str> {
        Some(self.parent.as_str()).filter(|parent| !parent.is_empty())
    }

    /// The run whose step committed it.
    pub(super) fn owner(&self) -> Option<&str> {
        self.labels.as_ref()?.get(names::LABEL_RUN).map(String::as_str)
    }

    fn layers(&self) -> u32 {
        let layers = self.root_fs.as_ref().and_then(|root| root.layers.as_ref());
        layers.map_or(1, |layers| u32::try_from(layers.len()).unwrap_or(u32::MAX))
    }

    /// Whether it has a name that outlives the run. An unnamed image is removed with the last image
    /// built on it.
    pub(super) fn is_named(&self) -> bool {
        let names = [&self.repo_tags, &self.repo_digests].into_iter().flatten().flatten();
        let pin =
            |name: &str| name.strip_prefix(PIN).is_some_and(|rest| rest.starts_with([':', '@']));
        names.into_iter().any(|name| !pin(name))
    }

    /// The image as the base of a run.
    pub(super) fn as_base(&self) -> Base {
        let none = Config::default();
        let config = self.config.as_ref().unwrap_or(&none);
        let env = config.env.iter().flatten().filter_map(|pair| {
            pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        });
        let work_dir = config.working_dir.clone().filter(|dir| !dir.is_empty());
        Base {
            id: self.id.clone(),
            env: env.collect(),
            entrypoint: config.entrypoint.clone().unwrap_or_default(),
            user: config.user.clone().unwrap_or_default(),
            work_dir: work_dir.unwrap_or_else(|| "/".to_owned()),
            layers: self.layers(),
            size: self.size,
            healthcheck: self.healthcheck.as_ref().is_some_and(|check| !check.is_null()),
            cmd: config.cmd.clone().unwrap_or_default(),
            is_docker_format: self.manifest_type.contains("docker"),
            stop_signal: config.stop_signal.clone().unwrap_or_default(),
        }
    }

    /// The facts about an image that steps will build on. It can itself be a commit.
    pub(super) fn as_known(&self, depth: u32) -> Result<ImageFacts, Fault> {
        let label = self.labels.as_ref().and_then(|labels| labels.get(names::LABEL_BASE));
        let base = match label {
            Some(label) => serde_json::from_str(label).map_err(|cause| {
                Fault::Malformed(format!(
                    "label {} of image {}: {cause}",
                    names::LABEL_BASE,
                    self.id
                ))
            })?,
            None => self.as_base(),
        };
        Ok(ImageFacts {
            depth: depth.max(self.layers().saturating_sub(base.layers)),
            layers: self.layers(),
            size: self.size,
            base: Arc::new(base),
            chain: Arc::default(),
        })
    }
}

/// A chain of images that build on each other. Its tag is on the last one.
#[derive(Debug, Default)]
pub(super) struct Chain(Mutex<Option<Tip>>);

#[derive(Debug)]
struct Tip {
    name: String,
    image: String,
}

impl Chain {
    /// Takes the tag's name for an image that builds on `parent`. `None` if `parent` is not the end
    /// of the chain, so that the image starts its own chain. Of two concurrent commits on one
    /// parent, only one gets the name.
    pub(super) fn goes_on(&self, parent: &str) -> Option<String> {
        let mut tip = self.0.lock();
        tip.take_if(|tip| tip.image == parent).map(|tip| tip.name)
    }

    /// Notes that the chain's tag is now on `image`.
    pub(super) fn ends_at(&self, name: &str, image: &str) {
        let mut tip = self.0.lock();
        *tip = Some(Tip { name: name.to_owned(), image: image.to_owned() });
    }
}

/// The facts about an image, or about a container on it.
#[derive(Debug, Clone)]
pub(super) struct ImageFacts {
    pub(super) base: Arc<Base>,
    /// The number of layers above the base image or the last squashed one.
    pub(super) depth: u32,
    /// The number of all layers.
    pub(super) layers: u32,
    /// The size in bytes when it was last inspected.
    pub(super) size: u64,
    pub(super) chain: Arc<Chain>,
}

/// A container of this worker.
#[derive(Debug, Clone)]
pub(super) struct OwnContainer {
    pub(super) on: String,
    pub(super) known: ImageFacts,
    pub(super) work_dir: String,
}

#[derive(Debug, Default)]
struct OfRun {
    images: HashMap<String, ImageFacts>,
    containers: HashMap<String, OwnContainer>,
}

/// A cache by run. Missing entries are read from the engine.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<HashMap<RunId, OfRun>>);

impl Memory {
    fn runs(&self) -> MutexGuard<'_, HashMap<RunId, OfRun>> {
        self.0.lock()
    }

    pub(super) fn image(&self, run: &RunId, id: &str) -> Option<ImageFacts> {
        self.runs().get(run)?.images.get(id).cloned()
    }

    pub(super) fn learn_image(&self, run: &RunId, id: &str, known: ImageFacts) {
        self.runs().entry(run.clone()).or_default().images.insert(id.to_owned(), known);
    }

    pub(super) fn container(&self, run: &RunId, id: &str) -> Option<OwnContainer> {
        self.runs().get(run)?.containers.get(id).cloned()
    }

    pub(super) fn learn_container(&self, run: &RunId, id: &str, made: OwnContainer) {
        self.runs().entry(run.clone()).or_default().containers.insert(id.to_owned(), made);
    }

    pub(super) fn forget_container(&self, run: &RunId, id: &str) {
        if let Some(of) = self.runs().get_mut(run) {
            of.containers.remove(id);
        }
    }

    pub(super) fn forget_run(&self, run: &RunId) {
        self.runs().remove(run);
    }
}

/// The shortest chain that is worth squashing.
const FEWEST: u32 = 12;
/// The overlay driver accepts at most 128 layers, and fails only when a container starts.
const MOST_LAYERS: u32 = 100;
const SQUASH_MILLIS: u64 = 150;
const SQUASH_MILLIS_PER_MEGABYTE: u64 = 7;

/// Whether to squash the next image. A commit looks at every layer below it, so `d` commits lose
/// about `0.75 * d * d` ms in total, while a squash rewrites the whole image. Squashing pays off
/// when the loss reaches the cost.
pub(super) fn is_to_squash(depth: u32, layers: u32, bytes: u64) -> bool {
    if layers >= MOST_LAYERS {
        return true;
    }
    let lost = u64::from(depth) * u64::from(depth) * 3 / 4;
    depth >= FEWEST && lost > SQUASH_MILLIS + bytes / 1_000_000 * SQUASH_MILLIS_PER_MEGABYTE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(json: &str) -> Inspected {
        serde_json::from_str(json).unwrap()
    }

    const BASE: &str = r#"{"Id":"b","Size":5000000,"RepoTags":["x:y"],"RepoDigests":[],
        "Config":{"Env":["PATH=/bin","EMPTY=","odd"],"Entrypoint":["/e"],"Cmd":["a b"],"WorkingDir":"/w","User":"u"},
        "RootFS":{"Type":"layers","Layers":["l1","l2"]},"Labels":null,"Later":{"field":1},
        "ManifestType":"application/vnd.docker.distribution.manifest.v2+json"}"#;

    #[test]
    fn a_base_image_is_read_with_and_without_a_configuration() {
        let base = inspected(BASE).as_base();
        assert_eq!(base.env, [("PATH".into(), "/bin".into()), ("EMPTY".into(), String::new())]);
        assert_eq!((base.work_dir.as_str(), base.user.as_str(), base.layers), ("/w", "u", 2));
        assert_eq!(base.format(), "docker");
        let bare = inspected(r#"{"Id":"b","Config":{"Env":null,"WorkingDir":""}}"#).as_base();
        assert_eq!((bare.env.len(), bare.cmd.len(), bare.stop_signal.as_str()), (0, 0, ""));
        assert_eq!((bare.work_dir.as_str(), bare.entrypoint.len()), ("/", 0));
        assert!(inspected(BASE).is_named());
        assert!(!inspected(r#"{"Id":"b","RepoTags":null,"RepoDigests":[]}"#).is_named());
        let pinned = r#"{"Id":"b","RepoTags":["localhost/bob-base:r-1"],
            "RepoDigests":["localhost/bob-base@sha256:0a"]}"#;
        assert!(!inspected(pinned).is_named(), "another run's pin goes when that run ends");
        assert!(inspected(r#"{"Id":"b","RepoTags":["localhost/bob-base-x:1"]}"#).is_named());
    }

    #[test]
    fn an_image_of_ours_remembers_its_base() {
        let base = inspected(BASE).as_base();
        let json = serde_json::json!({
            "Id": "c", "Labels": {"bob.base": base.as_label()},
            "Config": {"Env": ["SECRET=leaked"], "WorkingDir": "/elsewhere"},
            "RootFS": {"Layers": ["l1", "l2", "l3", "l4", "l5"]},
        });
        let known = inspected(&json.to_string()).as_known(0).unwrap();
        assert_eq!((&*known.base, known.depth), (&base, 3));
        let older = r#"{"Id":"c","Labels":{"bob.base":"{\"id\":\"b\",\"env\":[],\"entrypoint\":[],\"user\":\"\",\"work_dir\":\"/\",\"layers\":1,\"size\":1,\"healthcheck\":false}"}}"#;
        assert_eq!(inspected(older).as_known(0).unwrap().base.format(), "oci");
        let broken = r#"{"Id":"c","Labels":{"bob.base":"no"}}"#;
        assert!(inspected(broken).as_known(0).is_err());
    }

    #[test]
    fn a_chain_goes_on_from_its_last_image_alone() {
        let chain = Chain::default();
        assert_eq!(chain.goes_on("a"), None);
        chain.ends_at("1-0", "a");
        assert_eq!(chain.goes_on("a").as_deref(), Some("1-0"));
        chain.ends_at("1-0", "b");
        assert_eq!(chain.goes_on("a"), None);
    }

    #[test]
    fn small_images_are_squashed_sooner_than_large_ones_and_none_too_late() {
        let first = |base, bytes| (0..200).find(|d| is_to_squash(*d, base + d, bytes)).unwrap();
        assert!(first(1, 2_000_000) < 20);
        assert!(first(1, 100_000_000) > first(1, 2_000_000));
        assert_eq!(first(1, 50_000_000_000), 99);
        assert_eq!(first(40, 50_000_000_000), 60);
        assert_eq!(first(120, 50_000_000_000), 0);
    }

    #[test]
    fn a_late_look_at_a_run_that_was_forgotten_remembers_nothing() {
        let (memory, run) = (Memory::default(), "r-1".parse().unwrap());
        let known = inspected(BASE).as_known(0).unwrap();
        memory.learn_image(&run, "b", known);
        assert!(memory.image(&run, "b").is_some());
        memory.forget_run(&run);
        assert!(memory.image(&run, "b").is_none() && memory.container(&run, "c").is_none());
        memory.forget_container(&run, "c");
        assert!(memory.0.lock().is_empty());
    }
}
