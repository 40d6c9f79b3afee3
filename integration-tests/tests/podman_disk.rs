//! Freeing the engine's disk: unused images that were pulled can be removed, undeclared volumes are
//! not created, and the free space is measured.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::pipeline::{ExecutorKind, PullPolicy};
use protocol::time::Millis;
use runner::exec::access::{Granted, HostAccess};
use runner::exec::podman::Options;
use runner::ports::{BaseImage, ExecError, Images as _, StepSpec, Steps as _, Workspace};
use test_support::engine::{Api, Bench, shell, step};
use test_support::services::{OwnServices, Services};

const REGISTRY: &[&str] = &[
    "CONTAINER_ENGINE_URL",
    "BOB_TEST_IMAGE",
    "BOB_TEST_REGISTRY",
    "BOB_TEST_REGISTRY_USER",
    "BOB_TEST_REGISTRY_PASSWORD",
];
const HOUR: i64 = 3_600_000;

/// A test's own image, which is only in the registry.
struct Pulled {
    services: Services,
    name: String,
    api: Api,
}

impl Pulled {
    async fn new() -> Option<Self> {
        let services = Services::from_env(REGISTRY)?;
        let host = services.get("BOB_TEST_REGISTRY");
        let name = format!("{host}/t-{}:good", uuid::Uuid::new_v4());
        let api = Api::of(services.get("CONTAINER_ENGINE_URL"));
        let pulled = Self { name, api, services };
        pulled.publish("VOLUME /data").await;
        Some(pulled)
    }

    /// Publishes a new image under the name.
    async fn publish(&self, change: &str) {
        let maker = self.bench(self.services.get("BOB_TEST_IMAGE"));
        let base = maker.prepare().await;
        let line = format!("echo {} > /made", uuid::Uuid::new_v4());
        let (ran, _) = maker.step(&base, &shell(0, &line)).await;
        let Workspace::Container { id, .. } = &ran.workspace else { panic!("{:?}", ran.workspace) };
        let local = format!("localhost/made-{}", uuid::Uuid::new_v4());
        self.api.commit(id, Some(&local), &[change, "LABEL bob.run="]).await;
        let user = self.services.get("BOB_TEST_REGISTRY_USER");
        let password = self.services.get("BOB_TEST_REGISTRY_PASSWORD");
        self.api.push(&local, &self.name, user, password).await;
        maker.destroy().await;
        self.api.remove_image(&local).await;
    }

    fn bench(&self, image: &str) -> Bench {
        let options = Options {
            insecure_registries: vec![self.services.get("BOB_TEST_REGISTRY").to_owned()],
            ..Options::new(self.services.get("CONTAINER_ENGINE_URL"))
        };
        Bench::new(&options, image)
    }

    /// Another run on it, in another process.
    fn run(&self) -> Bench {
        self.bench(&self.name)
    }

    /// The image as a pulled base image, as soon as it is marked.
    async fn known(&self, id: &str, used: &[&str], hour: i64) -> BaseImage {
        let used: BTreeSet<String> = used.iter().map(|name| (*name).to_owned()).collect();
        let bench = self.run();
        let known = async {
            loop {
                let bases = bench.podman.bases(&used, Millis(hour * HOUR)).await.unwrap();
                if let Some(base) = bases.into_iter().find(|base| base.id == id) {
                    return base;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(240), known).await.unwrap()
    }
}

fn id_of(workspace: &Workspace) -> String {
    workspace.image().unwrap().to_owned()
}

#[tokio::test]
async fn a_pulled_image_is_removed_only_once_nothing_uses_it() {
    let Some(image) = Pulled::new().await else { return };
    let run = image.run();
    let on = run.prepare().await;
    let id = id_of(&on);
    let base = image.known(&id, &[], 1000).await;
    assert_eq!((&base.names, base.in_use), (&vec![image.name.clone()], false));
    assert!(base.bytes > 0);
    assert_eq!(base.used, Millis(1000 * HOUR), "it was seen for the first time");
    // Any process sees the mark, and its time only increases.
    assert_eq!(image.known(&id, &[], 1005).await.used, Millis(1000 * HOUR));
    assert_eq!(image.known(&id, &[&image.name], 1005).await.used, Millis(1005 * HOUR));
    let names = image.api.names_of(&id).await;
    assert_eq!(names.len(), 2, "its name and one mark: {names:?}");
    let (ran, _) = run.step(&on, &step(0, &["true"])).await;
    assert!(image.known(&id, &[], 1006).await.in_use, "a container uses it");
    assert!(!run.podman.remove_base(&base).await.unwrap());
    run.podman.checkpoint(&run.run, ran.workspace, &step(0, &["true"])).await.unwrap();
    run.podman.clear(&run.run.run).await.unwrap();
    assert!(image.known(&id, &[], 1006).await.in_use, "the image of a step is based on it");
    assert!(!run.podman.remove_base(&base).await.unwrap());
    run.destroy().await;
    image.api.tag(&id, "localhost/somebody-elses").await;
    assert!(image.known(&id, &[], 1006).await.in_use, "it has another name");
    assert!(!run.podman.remove_base(&base).await.unwrap());
    image.api.remove_image("localhost/somebody-elses").await;
    assert_eq!(image.api.names_of(&id).await.len(), 2, "no name was removed from it");
    assert!(run.podman.remove_base(&base).await.unwrap());
    assert!(!image.api.has_image(&id).await);
    assert!(run.podman.remove_base(&base).await.unwrap(), "it no longer exists");
}

#[tokio::test]
async fn an_image_that_the_worker_did_not_pull_is_never_removed() {
    let Some(image) = Pulled::new().await else { return };
    let run = image.run();
    let base = run.prepare().await;
    let bases = run.podman.bases(&BTreeSet::new(), Millis(0)).await.unwrap();
    let local = image.bench(image.services.get("BOB_TEST_IMAGE")).prepare().await;
    let ours = |of: &Workspace| bases.iter().any(|base| base.id == id_of(of) && !base.in_use);
    assert!(!ours(&local), "it was imported by hand");
    let known = image.known(&id_of(&base), &[], 1000).await;
    assert!(run.podman.remove_base(&known).await.unwrap());
}

#[tokio::test]
async fn the_previous_image_of_a_name_can_be_removed_after_a_new_pull() {
    let Some(image) = Pulled::new().await else { return };
    let mut run = image.run();
    run.run.pull = PullPolicy::Always;
    let older = id_of(&run.prepare().await);
    image.known(&older, &[], 1000).await;
    image.publish("LABEL version=2").await;
    let newer = id_of(&run.prepare().await);
    assert_ne!(older, newer);
    let now = image.known(&newer, &[&image.name], 1001).await;
    let before = image.known(&older, &[&image.name], 1001).await;
    assert!(before.names.is_empty() && before.used < now.used);
    for base in [before, now] {
        assert!(!base.in_use);
        assert!(run.podman.remove_base(&base).await.unwrap());
        assert!(!image.api.has_image(&base.id).await);
    }
    run.destroy().await;
}

#[tokio::test]
async fn a_base_image_that_is_removed_before_its_first_use_is_pulled_again() {
    let Some(image) = Pulled::new().await else { return };
    let run = image.run();
    let on = run.prepare().await;
    let base = image.known(&id_of(&on), &[], 1000).await;
    assert!(run.podman.remove_base(&base).await.unwrap());
    let (_, kept) = run.step(&on, &step(0, &["echo", "there"])).await;
    assert_eq!(kept.text(), "there\n");
    run.destroy().await;
    let base = image.known(&id_of(&on), &[], 1000).await;
    assert!(run.podman.remove_base(&base).await.unwrap());
    let mut run = image.run();
    let on = run.prepare().await;
    let base = image.known(&id_of(&on), &[], 1000).await;
    run.run.pull = PullPolicy::Never;
    assert!(run.podman.remove_base(&base).await.unwrap());
    let error = run.try_step(&on, &step(0, &["true"])).await.unwrap_err();
    assert!(matches!(error, ExecError::Image { .. }), "{error}");
    run.destroy().await;
}

/// Held by tests that create volumes or count them.
static VOLUMES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn no_volume_is_created_for_an_image_that_declares_one() {
    let Some(image) = Pulled::new().await else { return };
    let _alone = VOLUMES.lock().await;
    let before = image.api.volumes().await;
    let run = image.run();
    let on = run.prepare().await;
    let (left, _) = run.pass(&on, &shell(0, "mkdir -p /data; echo kept > /data/file")).await;
    let (_, kept) = run.pass(&left, &shell(1, "cat /data/file")).await;
    assert_eq!(kept.text(), "kept\n");
    assert_eq!(image.api.volumes().await, before);
    run.destroy().await;
    let base = image.known(&id_of(&on), &[], 1000).await;
    assert!(run.podman.remove_base(&base).await.unwrap());
}

#[tokio::test]
async fn the_measured_disk_is_the_one_that_the_engine_writes_to() {
    let Some(bench) = Bench::from_env() else { return };
    let disk = bench.podman.disk().await.unwrap().unwrap();
    assert!(disk.total > 0 && disk.free <= disk.total, "{disk:?}");
    assert!(bench.podman.disk().await.unwrap().unwrap().total == disk.total);
    // The small engine's path is on another disk in this process.
    let Some(small) = OwnServices::small_engine("64m").await else { return };
    let small = Bench::new(&Options::new(small.services().get("CONTAINER_ENGINE_URL")), "none");
    let disk = small.podman.disk().await.unwrap().unwrap();
    assert_eq!(disk.total, 64 << 20);
    assert!(disk.free < disk.total && disk.percent() < 50, "{disk:?}");
}

#[tokio::test]
async fn a_shared_volume_is_removed_unless_a_container_uses_it() {
    let Some(services) = Services::from_env(REGISTRY) else { return };
    let access = HostAccess { granted: Some(Granted::default()), ..HostAccess::default() };
    let options = Options { access, ..Options::new(services.get("CONTAINER_ENGINE_URL")) };
    let bench = Bench::new(&options, services.get("BOB_TEST_IMAGE"));
    let _alone = VOLUMES.lock().await;
    let base = bench.prepare().await;
    let names = [(); 3].map(|()| format!("t-{}", uuid::Uuid::new_v4()));
    let job = |position, name: &String, line| {
        let with =
            serde_json::json!({ "image": bench.run.image, "mounts": [format!("{name}:/v")] });
        StepSpec {
            executor: ExecutorKind::Docker,
            with: serde_json::from_value(with).unwrap(),
            ..shell(position, line)
        }
    };
    for name in [&names[0], &names[1], &names[2], &names[0]] {
        let (ran, _) = bench.step(&base, &job(0, name, "echo x > /v/x")).await;
        bench.podman.discard(&bench.run, ran.workspace).await;
    }
    let listed = async || {
        let listed = bench.podman.shared_volumes().await.unwrap();
        listed.into_iter().filter(|name| names.contains(name)).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [&names[1], &names[2], &names[0]].map(Clone::clone));
    let used = job(1, &names[0], "exec sleep 1000");
    let api = Api::of(&bench.url);
    tokio::select! {
        ended = bench.try_step(&base, &used) => panic!("the step ended: {ended:?}"),
        () = test_support::engine::until("a step that runs", || api.runs(&bench.run.run)) => {}
    }
    assert!(!bench.podman.remove_shared_volume(&names[0]).await.unwrap(), "it is in use");
    bench.destroy().await;
    for name in &names {
        assert!(bench.podman.remove_shared_volume(name).await.unwrap());
        assert!(bench.podman.remove_shared_volume(name).await.unwrap(), "it no longer exists");
    }
    assert_eq!(listed().await, [""; 0]);
}
