//! Secrets of a run: no data that leaves the worker contains one, whichever step received it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use protocol::event::{Event, Reason};
use protocol::id::{NodeId, RunId};
use protocol::names;
use protocol::pipeline::Vars;
use protocol::run::{Cause, RunRecord, Status};
use runner::embedded::Embedded;
use runner::ports::{
    ByteStream, LoggerFeed, Origin, Ports, Purpose, Secret, Secrets, SecretsError, Transfer,
    TransferError, Txn,
};
use runner::transfer::{Directory, Keeper};
use runner::worker::Options;
use serde_json::{Value, json};
use test_support::worker_suite::{Rig, new_node, options, until};

use crate::rig;

const TOKEN: &str = "t0ken-of-the-first-step";

/// The secrets of one worker.
#[derive(Default)]
struct FixedSecrets(BTreeMap<&'static str, &'static str>);

#[async_trait]
impl Secrets for FixedSecrets {
    async fn get(&self, name: &str, _purpose: &Purpose) -> Result<Option<Secret>, SecretsError> {
        Ok(self.0.get(name).map(|value| Secret::new(value.as_bytes())))
    }

    fn places(&self, name: &str) -> Vec<String> {
        vec![format!("/secrets/{name}")]
    }
}

/// Transfers that store artifacts and answer no callback.
#[derive(Default)]
struct CallbackRecorder {
    artifacts: Mutex<Vec<u8>>,
}

#[async_trait]
impl Transfer for CallbackRecorder {
    async fn external_resource(
        &self,
        _provider_url: &str,
        _params: &Vars,
        _mount: &str,
    ) -> Result<ByteStream, TransferError> {
        Err(TransferError::BadParams("resources are not supported".into()))
    }

    async fn internal_resource(
        &self,
        provider_url: &str,
        params: &Vars,
        mount: &str,
    ) -> Result<ByteStream, TransferError> {
        self.external_resource(provider_url, params, mount).await
    }

    async fn upload_artifact(
        &self,
        _store_url: &str,
        _path: [&str; 4],
        mut tar: ByteStream,
        _origin: &Origin,
    ) -> Result<(), TransferError> {
        while let Some(piece) = tar.next().await {
            let piece = piece.map_err(|cause| TransferError::Input(cause.to_string()))?;
            self.artifacts.lock().extend_from_slice(&piece);
        }
        Ok(())
    }

    async fn post(
        &self,
        _url: &str,
        _secret: Option<&str>,
        _id: &str,
        _body: Bytes,
    ) -> Result<u16, TransferError> {
        Ok(503)
    }

    fn logger(&self, _url: &str, _run: &RunId) -> Result<Box<dyn LoggerFeed>, TransferError> {
        Err(TransferError::BadParams("loggers are not supported".into()))
    }
}

struct World {
    rig: Rig,
    embedded: Embedded,
    edge: Arc<CallbackRecorder>,
    outputs: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let (rig, embedded) = rig().await;
        let outputs = tempfile::tempdir().unwrap();
        Self { rig, embedded, edge: Arc::default(), outputs }
    }

    /// A worker with these secrets.
    async fn worker(&mut self, options: Options, known: &[(&'static str, &'static str)]) -> NodeId {
        let ports = Ports {
            queue: self.embedded.queue(&options.node),
            secrets: Arc::new(FixedSecrets(known.iter().copied().collect())),
            transfer: Arc::<CallbackRecorder>::clone(&self.edge),
            outputs: Some(Arc::new(Keeper::new(Arc::new(Directory::new(
                self.outputs.path().to_owned(),
            ))))),
            ..self.rig.ports.clone()
        };
        self.rig.worker_with(options, ports).await
    }

    /// A pipeline whose first step receives the token.
    fn pipeline(&self, name: &str, steps: &[&str]) -> Value {
        let mut pipeline = self.rig.pipeline(name, steps);
        pipeline["steps"][0]["secrets"] = json!(["token"]);
        pipeline
    }

    /// Runs it to its end, and checks that no event and no stored value contains the token.
    async fn run(&self, name: &str, pipeline: &Value) -> (RunRecord, Vec<Event>) {
        let run = self.rig.run(name);
        self.rig.start(&run, pipeline).await;
        let events = self.rig.events_of(&run).await;
        for event in &events {
            let text = String::from_utf8(event.to_json()).unwrap();
            assert!(!text.contains(TOKEN), "{text}");
        }
        (self.rig.settled(&run).await, events)
    }

    fn kept(&self) -> Vec<u8> {
        let mut kept = Vec::new();
        let mut open = vec![self.outputs.path().to_owned()];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                kept.extend(std::fs::read(&path).unwrap());
            }
        }
        kept
    }
}

fn log(events: &[Event]) -> String {
    let logs = events.iter().filter(|event| matches!(event.reason, Reason::Log { .. }));
    logs.map(|event| format!("{}\n", event.message)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_of_one_step_is_masked_in_the_output_of_the_next() {
    let mut world = World::new().await;
    world.worker(options(new_node(), 1), &[("token", TOKEN)]).await;
    let pipeline = world.pipeline("next", &["exit 0", &format!("print it is {TOKEN} here")]);
    let (record, events) = world.run("next", &pipeline).await;
    assert_eq!(record.status, Status::Passed);
    assert_eq!(log(&events), "it is *** here\n");
    let last = events.iter().rev().find_map(|event| {
        let Reason::StepStarted { command, .. } = &event.reason else { return None };
        Some(command.as_str())
    });
    assert_eq!(last, Some("print it is *** here"));
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_later_step_commits_a_secret_to_its_image() {
    let mut world = World::new().await;
    world.worker(options(new_node(), 1), &[("token", TOKEN)]).await;
    let pipeline = world.pipeline("image", &["exit 0", &format!("put /file {TOKEN}"), "exit 0"]);
    let (record, _) = world.run("image", &pipeline).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::SecretLeak)));
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_with_a_secret_is_not_uploaded() {
    let mut world = World::new().await;
    world.worker(options(new_node(), 1), &[("token", TOKEN)]).await;
    let store = format!("s-{}", world.rig.tag);
    let registered = json!({ "name": store, "url": "http://store" });
    let txn = Txn::new().put(format!("{}{store}", names::STORES), registered.to_string().into());
    assert!(world.rig.ports.store.txn(txn).await.unwrap().committed);
    let artifact = json!({ "name": "a", "path": "file", "store": store });

    let mut pipeline = world.pipeline("clean", &["exit 0", "put file something else"]);
    pipeline["steps"][1]["produces_artifact"] = artifact.clone();
    assert_eq!(world.run("clean", &pipeline).await.0.status, Status::Passed);
    let sent = std::mem::take(&mut *world.edge.artifacts.lock());
    assert!(String::from_utf8_lossy(&sent).contains("something else"));

    let mut pipeline = world.pipeline("leaks", &["exit 0", &format!("put file a {TOKEN} b")]);
    pipeline["steps"][1]["produces_artifact"] = artifact;
    let (record, _) = world.run("leaks", &pipeline).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::SecretLeak)));
    assert!(record.message.unwrap().contains("artifact a contains a secret"));
    let sent = world.edge.artifacts.lock().clone();
    assert!(!String::from_utf8_lossy(&sent).contains(&TOKEN[..4]), "no part of it is sent");
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_with_a_secret_is_not_stored() {
    let mut world = World::new().await;
    world.worker(options(new_node(), 1), &[("token", TOKEN)]).await;
    let mut pipeline = world.pipeline("kept", &["exit 0", "put file something else"]);
    pipeline["steps"][1]["outputs"] = json!([{ "path": "file" }]);
    assert_eq!(world.run("kept", &pipeline).await.0.status, Status::Passed);
    assert!(String::from_utf8_lossy(&world.kept()).contains("something else"));

    let mut pipeline = world.pipeline("leaks", &["exit 0", &format!("put other {TOKEN}")]);
    pipeline["steps"][1]["outputs"] = json!([{ "path": "other" }]);
    let (record, _) = world.run("leaks", &pipeline).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::SecretLeak)));
    assert!(!String::from_utf8_lossy(&world.kept()).contains(&TOKEN[..4]));
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_of_a_callback_is_masked() {
    let mut world = World::new().await;
    world.worker(options(new_node(), 1), &[("token", TOKEN)]).await;
    let mut pipeline = world.pipeline("told", &["exit 0", "exit 0"]);
    pipeline["steps"][1]["label"] = json!(format!("job-{TOKEN}"));
    pipeline["steps"][1]["callback"] = json!({ "url": "http://receiver" });
    assert_eq!(world.run("told", &pipeline).await.0.status, Status::Passed);
    let entries = until("the callback is in the outbox", || async {
        let listing = world.rig.ports.store.list(names::CALLBACKS).await.unwrap();
        (listing.entries.len() == 2).then_some(listing.entries)
    })
    .await;
    for entry in entries {
        let text = String::from_utf8(entry.value).unwrap();
        assert!(text.contains("job-***") && !text.contains(TOKEN), "{text}");
    }
    world.rig.end().await;
}

/// A run whose first owner hands it over in its second step. The third step prints the token.
async fn handed_over(world: &mut World, known: &[(&'static str, &'static str)]) -> RunId {
    let dir = tempfile::tempdir().unwrap();
    let sign = dir.path().join("sign");
    let mut leaving = options(new_node(), 1);
    leaving.drain = Duration::ZERO;
    let first = world.worker(leaving, &[("token", TOKEN)]).await;
    let run = world.rig.run("handed");
    let wait = format!("wait-for {}", sign.display());
    let pipeline = world.pipeline("handed", &["exit 0", &wait, &format!("print {TOKEN}")]);
    world.rig.start(&run, &pipeline).await;
    world.rig.record(&run, |record| record.steps.len() == 2).await;
    world.worker(options(new_node(), 1), known).await;
    world.rig.end_worker(&first).await;
    world.rig.event(&run, "PipelineRunResumed").await;
    std::fs::write(&sign, "").unwrap();
    world.rig.settled(&run).await;
    run
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_masks_the_secrets_of_earlier_steps() {
    let mut world = World::new().await;
    let run = handed_over(&mut world, &[("token", TOKEN)]).await;
    let events = world.rig.events_of(&run).await;
    assert_eq!(world.rig.settled(&run).await.status, Status::Passed);
    assert!(log(&events).ends_with("***\n") && !log(&events).contains(TOKEN), "{}", log(&events));
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_cannot_mask_an_earlier_secret_starts_no_step() {
    let mut world = World::new().await;
    let run = handed_over(&mut world, &[]).await;
    let record = world.rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Rejected)));
    let message = record.message.unwrap();
    assert!(message.contains("step 0") && message.contains("/secrets/token"), "{message}");
    assert_eq!(log(&world.rig.events_of(&run).await), "");
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_contains_a_secret_is_rejected_and_not_recorded() {
    let mut world = World::new().await;
    world.worker(options(new_node(), 1), &[]).await;
    let mut pipeline = world.rig.pipeline("literal", &["exit 0"]);
    pipeline["steps"][0]["callback"] = json!({ "url": "http://receiver", "secret": TOKEN });
    let (record, _) = world.run("literal", &pipeline).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Rejected)));
    let stored = serde_json::to_string(&record).unwrap();
    assert!(!stored.contains(TOKEN), "{stored}");
    let message = record.message.unwrap();
    for part in ["steps[0].callback.secret", "secret-name", "BOB_LITERAL_SECRETS"] {
        assert!(message.contains(part), "{message}");
    }

    let mut allowing = options(new_node(), 1);
    allowing.literal_secrets = true;
    let mut world = World::new().await;
    world.worker(allowing, &[]).await;
    let run = world.rig.run("allowed");
    let mut pipeline = world.rig.pipeline("allowed", &["exit 0"]);
    pipeline["steps"][0]["callback"] = json!({ "url": "http://receiver", "secret": TOKEN });
    world.rig.start(&run, &pipeline).await;
    assert_eq!(world.rig.settled(&run).await.status, Status::Passed);
    world.rig.end().await;
}
