//! Images: neither the annotations of an image nor its name give a step more than its content.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Method;
use hyper_util::rt::TokioIo;
use protocol::pipeline::PullPolicy;
use runner::exec::access::{Granted, HostAccess};
use runner::exec::podman::Options;
use runner::ports::{ExecError, Images as _, RunScope, Workspace};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use test_support::engine::{Api, Bench, files_of, shell};
use test_support::services::Services;
use tokio::net::UnixStream;

use crate::adapters::adapters;

const REGISTRY: &[&str] = &[
    "CONTAINER_ENGINE_URL",
    "BOB_TEST_IMAGE",
    "BOB_TEST_REGISTRY",
    "BOB_TEST_REGISTRY_USER",
    "BOB_TEST_REGISTRY_PASSWORD",
];
/// A filter program with one instruction, which allows every system call.
const NO_FILTER: &str = "BgAAAAAA/38=";

/// Calls the engine's own API.
async fn ask(url: &str, method: Method, path: &str, body: Vec<u8>) -> Bytes {
    let stream = UnixStream::connect(url.strip_prefix("unix://").unwrap()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let request = hyper::Request::builder()
        .method(method)
        .uri(format!("/v4.0.0/libpod{path}"))
        .header("host", "engine")
        .header("content-type", "application/x-tar")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let asking = async {
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success(), "{path}: {status} {body:?}");
        body
    };
    tokio::select! {
        answer = asking => answer,
        ended = connection => panic!("the engine hung up: {ended:?}"),
    }
}

/// The content of the base image with a configuration of its own, so that no other test has the
/// same image.
struct Content {
    url: String,
    config: Vec<u8>,
    layer: Vec<u8>,
    layer_type: Value,
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Content {
    async fn of(url: &str, image: &str) -> Self {
        let path = format!("/images/{}/get?format=oci-archive", image.replace('/', "%2F"));
        let files = files_of(&ask(url, Method::GET, &path, Vec::new()).await).await;
        let file = |name: &str| files.iter().find(|(it, _)| it == name).unwrap().1.clone();
        let blob = |of: &Value| {
            file(&format!("blobs/{}", of["digest"].as_str().unwrap().replace(':', "/")))
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let manifest = json(&blob(&json(&file("index.json"))["manifests"][0]));
        let mut config = json(&blob(&manifest["config"]));
        config["author"] = uuid::Uuid::new_v4().to_string().into();
        let layer = &manifest["layers"][0];
        Self {
            url: url.to_owned(),
            config: config.to_string().into_bytes(),
            layer: blob(layer),
            layer_type: layer["mediaType"].clone(),
        }
    }

    /// Loads it under a name with these annotations. They replace those of the same content under
    /// other names.
    async fn load(&self, name: &str, annotations: Value) {
        let described = |kind: Value, bytes: &[u8]| json!({ "mediaType": kind, "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len() });
        let (kind, config) = ("application/vnd.oci.image", &self.config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": format!("{kind}.manifest.v1+json"),
            "config": described(format!("{kind}.config.v1+json").into(), config),
            "layers": [described(self.layer_type.clone(), &self.layer)],
            "annotations": annotations,
        });
        let manifest = manifest.to_string().into_bytes();
        let mut of_index = described(format!("{kind}.manifest.v1+json").into(), &manifest);
        of_index["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [of_index] }).to_string();
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        let mut tar = tokio_tar::Builder::new(Vec::new());
        let blobs = [config, &self.layer, &manifest]
            .map(|blob| (format!("blobs/sha256/{}", digest(blob)), blob.clone()));
        let others = [("oci-layout".to_owned(), layout), ("index.json".to_owned(), index.into())];
        for (path, content) in blobs.into_iter().chain(others) {
            let mut header = tokio_tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, &content[..]).await.unwrap();
        }
        let tar = tar.into_inner().await.unwrap();
        ask(&self.url, Method::POST, "/images/load", tar).await;
    }
}

/// The annotations of a container of an image, as the engine passes them to the runtime.
async fn annotations_of_container(url: &str, image: &str) -> Value {
    let body = json!({ "image": image, "command": ["true"] }).to_string().into_bytes();
    let created = ask(url, Method::POST, "/containers/create", body).await;
    let created: Value = serde_json::from_slice(&created).unwrap();
    let id = created["Id"].as_str().unwrap();
    let container = ask(url, Method::GET, &format!("/containers/{id}/json"), Vec::new()).await;
    let container: Value = serde_json::from_slice(&container).unwrap();
    ask(url, Method::DELETE, &format!("/containers/{id}?force=true"), Vec::new()).await;
    container["Config"]["Annotations"].clone()
}

fn local_name() -> String {
    format!("localhost/t-{}:latest", uuid::Uuid::new_v4())
}

fn named(error: &ExecError, annotation: &str) {
    assert!(matches!(error, ExecError::Image { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("{annotation:?}")), "{error}");
}

#[tokio::test]
async fn no_image_annotation_reaches_the_runtime_as_an_option() {
    for adapter in adapters(&Granted::default()).into_iter().filter(|it| it.name != "docker.io") {
        let (dir, name) = (adapter.dir(), local_name());
        let content = Content::of(&adapter.url, &adapter.image).await;
        let at = dir.path().join("host.sock");
        let socket = UnixListener::bind(&at).unwrap();
        socket.set_nonblocking(true).unwrap();
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o777)).unwrap();
        let job = adapter.job("true", json!({ "image": name }));
        for (annotation, value) in [
            ("run.oci.seccomp_bpf_data", NO_FILTER),
            ("run.oci.pidfd_receiver", at.to_str().unwrap()),
            ("run.oci.keep_original_groups", "1"),
            ("org.systemd.property.ExecStopPost", "x"),
            ("io.podman.annotations.privileged", "TRUE"),
        ] {
            content.load(&name, json!({ annotation: value })).await;
            named(&adapter.fails(&job).await, annotation);
            named(&adapter.fails_on(&name).await, annotation);
        }
        let connected = socket.accept().unwrap_err();
        assert_eq!(connected.kind(), std::io::ErrorKind::WouldBlock, "{}", adapter.name);
        let described = json!({ "org.opencontainers.image.title": "x", "io.buildah.version": "1" });
        content.load(&name, described).await;
        adapter.passes(&job).await;
        adapter.end().await;
        Api::of(&adapter.url).remove_image(&name).await;
    }
}

#[tokio::test]
async fn annotations_that_change_after_the_check_have_no_effect() {
    let Some(mut bench) = Bench::from_env() else { return };
    let (clean, evil) = (local_name(), local_name());
    let content = Content::of(&bench.url, &bench.run.image).await;
    content.load(&clean, json!({})).await;
    bench.run.image = clean.clone();
    let base = bench.prepare().await;
    let annotation = "run.oci.seccomp_bpf_data";
    content.load(&evil, json!({ annotation: NO_FILTER })).await;
    match bench.try_step(&base, &shell(0, "true")).await {
        Err(error) => named(&error, annotation),
        // podman 5 does not pass the annotations of an image to the runtime.
        Ok(_) => assert_eq!(annotations_of_container(&bench.url, &evil).await, json!(null)),
    }
    bench.destroy().await;
    let api = Api::of(&bench.url);
    api.remove_image(&clean).await;
    api.remove_image(&evil).await;
}

#[tokio::test]
async fn an_image_whose_annotations_another_pull_replaced_is_pulled_again() {
    let Some(services) = Services::from_env(REGISTRY) else { return };
    let (url, host) = (services.get("CONTAINER_ENGINE_URL"), services.get("BOB_TEST_REGISTRY"));
    let (name, evil) = (format!("{host}/t-{}:latest", uuid::Uuid::new_v4()), local_name());
    let (content, api) = (Content::of(url, services.get("BOB_TEST_IMAGE")).await, Api::of(url));
    content.load(&evil, json!({})).await;
    let user = services.get("BOB_TEST_REGISTRY_USER");
    api.push(&evil, &name, user, services.get("BOB_TEST_REGISTRY_PASSWORD")).await;
    api.tag(&evil, name.strip_suffix(":latest").unwrap()).await;
    content.load(&evil, json!({ "run.oci.seccomp_bpf_data": NO_FILTER })).await;
    let options = Options { insecure_registries: vec![host.to_owned()], ..Options::new(url) };
    let bench = Bench::new(&options, &name);
    let base = bench.prepare().await;
    bench.pass(&base, &shell(0, "true")).await;
    bench.destroy().await;
    api.remove_image(&evil).await;
}

#[tokio::test]
async fn an_image_of_another_run_is_not_a_base_image() {
    let Some(victim) = Bench::from_env() else { return };
    let base = victim.prepare().await;
    let (kept, _) = victim.pass(&base, &shell(0, "echo private > /private")).await;
    let Workspace::Image { id, .. } = kept else { panic!("{kept:?}") };
    let run = &victim.run.run;
    let names = [
        format!("localhost/bob-run/s0-1-1:{run}"),
        format!("bob-run/s0-1-1:{run}"),
        format!("docker://localhost/bob-run/s0-1-1:{run}"),
        id.clone(),
        id[..20].to_owned(),
    ];
    for adapter in adapters(&Granted::default()).into_iter().filter(|it| it.name != "docker.io") {
        for name in &names {
            let why = adapter.refuses(&adapter.job("cat /private", json!({ "image": name }))).await;
            assert!(why.contains(name.as_str()), "{}: {why}", adapter.name);
            let error = adapter.fails_on(name).await;
            assert!(matches!(error, ExecError::Unsupported(_)), "{}: {error:?}", adapter.name);
        }
        adapter.end().await;
    }
    // A person's own file can start from any image.
    let person = Bench::new(&Options::new(&victim.url), &id);
    let base = person.prepare().await;
    let (_, said) = person.pass(&base, &shell(0, "cat /private")).await;
    assert_eq!(said.text(), "private\n");
    person.destroy().await;
    victim.destroy().await;
}

#[tokio::test]
async fn no_image_comes_from_the_checkpoint_registry() {
    let Some(services) = Services::from_env(REGISTRY) else { return };
    let (url, host) = (services.get("CONTAINER_ENGINE_URL"), services.get("BOB_TEST_REGISTRY"));
    let victim = Bench::new(&Options::new(url), services.get("BOB_TEST_IMAGE"));
    let base = victim.prepare().await;
    let (kept, _) = victim.pass(&base, &shell(0, "echo private > /private")).await;
    let Workspace::Image { id, .. } = kept else { panic!("{kept:?}") };
    // The same registry by another of its names, which no list can contain.
    let other = format!("{host}/t-{}:1", uuid::Uuid::new_v4());
    let user = services.get("BOB_TEST_REGISTRY_USER");
    Api::of(url).push(&id, &other, user, services.get("BOB_TEST_REGISTRY_PASSWORD")).await;
    victim.destroy().await;
    let access = HostAccess {
        granted: Some(Granted::default()),
        checkpoints: Some(format!("{host}/bob-checkpoints")),
        ..HostAccess::default()
    };
    let insecure_registries = vec![host.to_owned()];
    let options = Options { access, insecure_registries, ..Options::new(url) };
    let bench = Bench::new(&options, "");
    for (image, told) in [
        (format!("{host}/bob-checkpoints:{}.1.0.1", victim.run.run), "reserved"),
        (other.clone(), "another run"),
    ] {
        let run = RunScope { image, pull: PullPolicy::Missing, ..bench.run.clone() };
        let error = bench.podman.prepare(&run, &bench.stop).await.unwrap_err();
        assert!(matches!(error, ExecError::Unsupported(_)), "{error:?}");
        assert!(error.to_string().contains(told), "{error}");
    }
    bench.destroy().await;
    Api::of(url).remove_image(&other).await;
}
