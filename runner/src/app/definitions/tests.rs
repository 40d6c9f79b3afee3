//! Definitions of a temporary directory, stored over embedded services.

use async_trait::async_trait;
use futures::StreamExt as _;
use protocol::id::PipelineId;
use protocol::names;
use protocol::run::StoredPipeline;

use super::*;
use crate::app::this_host;
use crate::client::{Client, Services, Unavailable};
use crate::config::{Environment, Flags, Sources, load as load_config};
use crate::embedded::{Embedded, Options};
use crate::ports::{Events, Queue, Store, Txn};

const PATTERN: &str = "**/pipelines.{yml,yaml}";

/// A directory of definitions, and the services that store them.
struct Rig {
    dir: tempfile::TempDir,
    embedded: Embedded,
}

struct Here(Embedded);

#[async_trait]
impl Services for Here {
    async fn store(&self) -> Result<Arc<dyn Store>, Unavailable> {
        Ok(self.0.store())
    }

    async fn queue(&self) -> Result<Arc<dyn Queue>, Unavailable> {
        Ok(self.0.queue(&NodeId::from_stored("bob/runner-test")))
    }

    async fn events(&self) -> Result<Arc<dyn Events>, Unavailable> {
        Ok(self.0.events())
    }
}

impl Rig {
    async fn new() -> Self {
        let options =
            Options { dir: None, event_retention: Duration::from_secs(86_400), host: this_host() };
        let embedded = Embedded::open(options).await.unwrap();
        Self { dir: tempfile::tempdir().unwrap(), embedded }
    }

    fn client(&self) -> Client {
        Client::new(Arc::new(Here(self.embedded.clone())))
    }

    fn place(&self, source: &str) -> Place {
        Place {
            dir: self.dir.path().to_owned(),
            pattern: PATTERN.to_owned(),
            source: source.to_owned(),
            is_named: true,
            literals: Literals::Rejected,
        }
    }

    /// Loads the directory as a worker that starts.
    async fn start_as(&self, place: Place) -> Result<Loader, UnusableDefinitions> {
        let shelf = Shelf {
            store: self.embedded.store(),
            events: self.embedded.events(),
            host: this_host(),
            node: NodeId::from_stored("bob/runner-test"),
        };
        Loader::load_first(place, shelf, None).await
    }

    async fn start(&self) -> Result<Loader, UnusableDefinitions> {
        self.start_as(self.place("here")).await
    }

    /// Writes `pipelines.yml` of a subdirectory with pipelines of these names, each with one task.
    fn write(&self, sub: &str, pipelines: &[&str], script: &str) {
        let tasks = format!("{{ tasks: {{ x: {{ script: [{script}] }} }} }}");
        let all: Vec<String> = pipelines.iter().map(|name| format!("{name}: {tasks}")).collect();
        self.write_text(sub, &format!("pipelines: {{ {} }}", all.join(", ")));
    }

    fn write_text(&self, sub: &str, text: &str) {
        let dir = self.dir.path().join(sub);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("pipelines.yml"), text).unwrap();
    }

    fn remove(&self, sub: &str) {
        std::fs::remove_dir_all(self.dir.path().join(sub)).unwrap();
    }

    async fn stored(&self, name: &str) -> Option<StoredPipeline> {
        let entry = self.embedded.store().get(&names::pipeline_key(&id(name))).await.unwrap()?;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }

    /// The names of all stored pipelines.
    async fn names(&self) -> Vec<String> {
        let pipelines = self.client().pipelines().await.unwrap().readable;
        let name = |stored: &StoredPipeline| stored.pipeline["name"].as_str().unwrap().to_owned();
        pipelines.iter().map(name).collect()
    }
}

fn id(name: &str) -> PipelineId {
    PipelineId::new("local", name).unwrap()
}

/// The script of a stored pipeline.
fn script(stored: &StoredPipeline) -> &str {
    stored.pipeline["steps"][0]["script"][0].as_str().unwrap()
}

#[tokio::test]
async fn definitions_from_files_are_stored_and_read_only_for_users() {
    let rig = Rig::new().await;
    rig.write("a", &["build"], "make");
    rig.start().await.unwrap();
    let stored = rig.stored("build").await.unwrap();
    let file = rig.dir.path().join("a/pipelines.yml").to_string_lossy().into_owned();
    assert_eq!(stored.file.as_ref(), Some(&file));
    assert_eq!(script(&stored), "make");
    let parsed = protocol::dialect::parse(None, b"pipelines: { build: { tasks: {} } }");
    let client = rig.client();
    let applied = client.apply_pipeline(&id("build"), &parsed.pipelines[0]).await.unwrap_err();
    let deleted = client.delete_pipeline(&id("build")).await.unwrap_err();
    for error in [applied.to_string(), deleted.to_string()] {
        assert!(error.contains(&file), "{error}");
    }
    assert_eq!(rig.stored("build").await, Some(stored));
}

// Rows: D20
#[tokio::test]
async fn a_reload_changes_adds_and_removes_what_the_files_did() {
    let rig = Rig::new().await;
    rig.write("a", &["build", "test"], "make");
    rig.write("b", &["deploy"], "make");
    let mut loader = rig.start().await.unwrap();
    let paused = StoredPipeline { paused: true, ..rig.stored("build").await.unwrap() };
    let pause =
        Txn::new().put(names::pipeline_key(&id("build")), serde_json::to_vec(&paused).unwrap());
    assert!(rig.embedded.store().txn(pause).await.unwrap().committed);
    rig.write("a", &["build", "new"], "ninja");
    rig.remove("b");
    loader.look(false).await;
    assert_eq!(rig.names().await, ["build", "new"]);
    let build = rig.stored("build").await.unwrap();
    assert_eq!(script(&build), "ninja");
    assert!(build.paused, "a paused pipeline stays paused");
}

// Rows: D20
#[tokio::test]
async fn a_change_of_on_error_alone_is_a_change() {
    let rig = Rig::new().await;
    let text = |script| {
        format!(
            "pipelines: {{ x: {{ on_error: {{ script: [{script}] }}, tasks: {{ a: {{}} }} }} }}"
        )
    };
    rig.write_text("a", &text("one"));
    let mut loader = rig.start().await.unwrap();
    rig.write_text("a", &text("two"));
    loader.look(false).await;
    let stored = rig.stored("x").await.unwrap();
    assert_eq!(stored.pipeline["on-error"]["script"][0], "two");
}

// Rows: D1, D20
#[tokio::test]
async fn a_faulty_file_leaves_all_definitions_as_they_are_and_is_reported_once() {
    let rig = Rig::new().await;
    rig.write("a", &["build"], "make");
    rig.write("b", &["deploy"], "make");
    let mut loader = rig.start().await.unwrap();
    rig.write("a", &["build"], "ninja");
    rig.write_text("b", "pipelines: { deploy: { concurrency: -1 } }");
    loader.look(false).await;
    assert_eq!(script(&rig.stored("build").await.unwrap()), "make");
    assert_eq!(rig.names().await, ["build", "deploy"]);
    let failure = loader.failure.clone().unwrap();
    assert!(failure.contains("b/pipelines.yml:1:"), "{failure}");
    assert!(!loader.is_unfinished, "only a change of the files can help");
    loader.look(false).await;
    assert_eq!(loader.failure, Some(failure));
    rig.remove("b");
    loader.look(false).await;
    assert_eq!(loader.failure, None);
    assert_eq!(rig.names().await, ["build"]);
    assert_eq!(script(&rig.stored("build").await.unwrap()), "ninja");
}

#[tokio::test]
async fn a_start_with_faulty_files_fails_with_every_fault() {
    let rig = Rig::new().await;
    rig.write_text("a", "pipelines: { x: { concurrency: -1 } }");
    rig.write_text("b", "");
    let error = rig.start().await.err().unwrap().to_string();
    assert!(error.contains("a/pipelines.yml:1:") && error.contains("b/pipelines.yml"), "{error}");
    assert_eq!(rig.names().await, [""; 0]);
}

#[tokio::test]
async fn a_set_directory_without_a_file_is_a_fault_and_one_without_a_pipeline_is_not() {
    let rig = Rig::new().await;
    rig.write("a", &["build"], "make");
    let mut loader = rig.start().await.unwrap();
    rig.remove("a");
    loader.look(false).await;
    assert_eq!(rig.names().await, ["build"], "the directory may not be mounted");
    rig.write_text("a", "pipelines: {}");
    loader.look(false).await;
    assert_eq!(rig.names().await, [""; 0]);
    rig.remove("a");
    let default = Place { is_named: false, ..rig.place("here") };
    rig.start_as(default).await.unwrap();
}

#[tokio::test]
async fn a_name_that_a_user_has_stored_is_taken_over_once_it_is_free() {
    let rig = Rig::new().await;
    rig.write("a", &["other"], "make");
    let mut loader = rig.start().await.unwrap();
    let parsed = protocol::dialect::parse(None, b"pipelines: { build: { tasks: { y: {} } } }");
    rig.client().apply_pipeline(&id("build"), &parsed.pipelines[0]).await.unwrap();
    rig.write("a", &["other", "build"], "ninja");
    loader.look(false).await;
    assert!(loader.failure.as_ref().unwrap().contains("pipeline delete local/build"));
    assert_eq!(script(&rig.stored("other").await.unwrap()), "make", "all or nothing");
    assert!(rig.client().delete_pipeline(&id("build")).await.unwrap());
    loader.look(false).await;
    assert_eq!(script(&rig.stored("build").await.unwrap()), "ninja");
    assert_eq!(loader.failure, None);
}

#[tokio::test]
async fn two_workers_with_the_same_files_agree_and_other_sources_are_left_alone() {
    let rig = Rig::new().await;
    rig.write("a", &["build"], "make");
    rig.start().await.unwrap();
    let key = names::pipeline_key(&id("build"));
    let before = rig.embedded.store().get(&key).await.unwrap();
    rig.start().await.unwrap();
    assert_eq!(rig.embedded.store().get(&key).await.unwrap(), before, "nothing is written again");
    rig.write("a", &["other"], "make");
    rig.start_as(rig.place("there")).await.unwrap();
    assert_eq!(rig.names().await, ["build", "other"]);
}

#[tokio::test]
async fn a_request_reloads_at_once_and_restores_what_others_removed() {
    let rig = Rig::new().await;
    rig.write("a", &["build"], "make");
    let loader = rig.start().await.unwrap();
    let store = rig.embedded.store();
    let key = names::pipeline_key(&id("build"));
    let reply = store.txn(Txn::new().delete(key.clone())).await.unwrap();
    let mut changes = store.watch(names::PIPELINES, reply.revision + 1).await.unwrap();
    let (reload, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let keeping = loader.keep(Arc::clone(&reload), stop.clone());
    let requested = async {
        reload.notify_one();
        changes.next().await.unwrap().unwrap();
        stop.cancel();
    };
    tokio::join!(keeping, requested);
    assert!(rig.stored("build").await.is_some());
}

fn config(set: &[&str]) -> Config {
    let sources = Sources {
        flags: Flags { config: None, set: set.iter().map(|set| (*set).to_owned()).collect() },
        environment: Environment::default(),
        working_dir: PathBuf::from("/nonexistent"),
        system_dir: PathBuf::from("/nonexistent"),
    };
    load_config(&sources).unwrap().config
}

#[test]
fn the_default_directory_is_the_working_directory_of_embedded_mode() {
    let here = Some(Path::new("/srv/project"));
    let embedded = Place::of(&config(&["mode=embedded"]), here).unwrap();
    assert_eq!(embedded.dir, Path::new("."));
    assert!(!embedded.is_named);
    assert_eq!(Place::of(&config(&["mode=embedded"]), Some(Path::new("/"))), None);
    assert_eq!(Place::of(&config(&[]), here), None, "a cluster's worker loads only what is set");
}

#[test]
fn the_definitions_of_a_cluster_belong_to_a_set_named_after_their_directory() {
    let place = |set: &[&str]| Place::of(&config(set), None).unwrap();
    let dir = "definitions.dir=/etc/pipelines";
    assert_eq!(place(&[dir]).source, "/etc/pipelines");
    assert_eq!(place(&[dir, "definitions.source=team"]).source, "team");
    assert_eq!(place(&[dir, "mode=embedded"]).source, EMBEDDED);
}
