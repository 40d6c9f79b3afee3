//! Mounts: only directories and volumes that the operator allows. They cannot overlay, replace or
//! expose anything else on the host.

use std::path::Path;

use podman_api::Podman;
use podman_api::opts::VolumeCreateOpts;
use protocol::pipeline::ExecutorKind;
use runner::exec::access::{Granted, SharedDir};
use runner::ports::StepSpec;
use serde_json::json;
use tempfile::TempDir;

use crate::adapters::{Adapter, adapters};

fn shares(dirs: &[(&Path, bool)]) -> Granted {
    let share = |(path, is_read_only): &(&Path, bool)| SharedDir {
        path: path.to_path_buf(),
        is_read_only: *is_read_only,
    };
    Granted { dirs: dirs.iter().map(share).collect(), ..Granted::default() }
}

/// The same adapter with other grants. The engines are always listed in the same order.
fn again(adapter: &Adapter, granted: &Granted) -> Adapter {
    let mut all = adapters(granted).into_iter();
    all.find(|other| other.name == adapter.name).unwrap()
}

fn mount(adapter: &Adapter, line: &str, mount: &str) -> StepSpec {
    adapter.job(line, json!({ "mounts": [mount] }))
}

fn volume_name() -> String {
    format!("t-{}", uuid::Uuid::new_v4())
}

/// The engine's libpod API, if the engine is podman.
fn libpod(adapter: &Adapter) -> Option<Podman> {
    let version = podman_api::ApiVersion::new(4, Some(0), Some(0));
    let is_podman = adapter.name != "docker.io";
    is_podman.then(|| Podman::new_versioned(&adapter.url, version).unwrap())
}

/// A directory of the host with a file in it.
fn secret_dir(adapter: &Adapter) -> TempDir {
    let dir = adapter.dir();
    std::fs::write(dir.path().join("secret"), "of the host\n").unwrap();
    dir
}

#[tokio::test]
async fn a_mount_option_cannot_overlay_a_directory_of_the_host() {
    for adapter in adapters(&Granted::default()) {
        let dir = secret_dir(&adapter);
        let (upper, work) = (dir.path().display(), dir.path().join("work"));
        let overlay = format!("v:/x:O,upperdir={upper},workdir={}", work.display());
        let why = adapter.refuses(&mount(&adapter, "cat /x/secret", &overlay)).await;
        assert!(why.contains("unknown option \"O\""), "{}: {why}", adapter.name);
        for option in ["idmap", "upperdir=/etc", "dev", "exec"] {
            let text = format!("v:/x:{option}");
            let why = adapter.refuses(&mount(&adapter, "true", &text)).await;
            assert!(why.contains("unknown option"), "{}: {why}", adapter.name);
        }
        adapter.end().await;
    }
}

#[tokio::test]
async fn options_in_with_are_applied_or_rejected() {
    for adapter in adapters(&Granted::default()).into_iter().filter(|adapter| !adapter.is_docker())
    {
        let job = adapter.job("true", json!({}));
        for executor in [ExecutorKind::Docker, ExecutorKind::Podman] {
            for with in [
                json!({ "mounts": ["v:/x:O,upperdir=/home/u/.config,workdir=/home/u/w"] }),
                json!({ "mounts": [] }),
                json!({ "tty": true }),
                json!({ "privileged": true }),
                json!({ "devices": ["/dev/kmsg"] }),
                json!({ "cap_add": ["SYS_ADMIN"] }),
            ] {
                let with = with.as_object().unwrap().clone();
                let key = with.keys().next().unwrap().clone();
                let why = adapter.refuses(&StepSpec { executor, with, ..job.clone() }).await;
                assert!(why.contains(&format!("`{key}`")), "{}: {why}", adapter.name);
            }
        }
        adapter.end().await;
    }
}

#[tokio::test]
async fn only_volumes_of_steps_or_of_the_operator_can_be_mounted() {
    for adapter in adapters(&Granted::default()) {
        let why = adapter.refuses(&mount(&adapter, "ls /x", "bob-r-1-0-7-1:/x")).await;
        assert!(why.contains("reserved"), "{}: {why}", adapter.name);
        let Some(engine) = libpod(&adapter) else { continue };
        let (own, foreign) = (volume_name(), volume_name());
        let opts = VolumeCreateOpts::builder().name(&foreign).build();
        engine.volumes().create(&opts).await.unwrap();
        let why = adapter.refuses(&mount(&adapter, "ls /x", &format!("{foreign}:/x"))).await;
        assert!(why.contains("BOB_SHARED_VOLUMES"), "{}: {why}", adapter.name);
        let named = Granted { volumes: vec![foreign.clone()], ..Granted::default() };
        let named = again(&adapter, &named);
        named.passes(&mount(&named, "echo kept > /x/k", &format!("{foreign}:/x"))).await;
        named.end().await;
        if adapter.is_docker() {
            let why = adapter.refuses(&mount(&adapter, "ls /x", &format!("{own}:/x"))).await;
            assert!(why.contains("BOB_SHARED_VOLUMES"), "{}: {why}", adapter.name);
        } else {
            let writes = mount(&adapter, "echo kept > /x/k", &format!("{own}:/x"));
            adapter.passes(&writes).await;
            let reads = mount(&adapter, "cat /x/k", &format!("{own}:/x:ro"));
            assert_eq!(adapter.passes(&reads).await, "kept\n", "{}", adapter.name);
        }
        adapter.end().await;
        engine.volumes().get(&foreign).remove().await.unwrap();
        if !adapter.is_docker() {
            engine.volumes().get(&own).remove().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_step_cannot_swap_a_mount_of_another_step() {
    for adapter in adapters(&Granted::default()) {
        let (cache, data, host) = (adapter.dir(), adapter.dir(), secret_dir(&adapter));
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(cache.path(), open).unwrap();
        for dir in [&cache, &data] {
            std::fs::create_dir(dir.path().join("sub")).unwrap();
        }
        std::fs::write(data.path().join("sub/file"), "shared\n").unwrap();
        let granted = shares(&[(cache.path(), false), (data.path(), true)]);
        let adapter = again(&adapter, &granted);
        let at = cache.path().display();
        for text in [format!("{at}/sub:/x"), format!("{at}/sub:/x:ro")] {
            let why = adapter.refuses(&mount(&adapter, "ls /x", &text)).await;
            assert!(why.contains("which steps can change"), "{}: {why}", adapter.name);
        }
        // The attack: a container creates the link.
        let line = format!("mv /x/sub /x/old && ln -s {} /x/sub", host.path().display());
        adapter.passes(&mount(&adapter, &line, &format!("{at}:/x"))).await;
        let text = format!("{at}/sub:/x:ro");
        let why = adapter.refuses(&mount(&adapter, "cat /x/secret", &text)).await;
        assert!(why.contains("BOB_SHARED_DIRS"), "{}: {why}", adapter.name);

        let at = data.path().display();
        let text = format!("{at}/sub:/x:ro");
        let said = adapter.passes(&mount(&adapter, "cat /x/file", &text)).await;
        assert_eq!(said, "shared\n", "{}", adapter.name);
        for text in [format!("{at}:/x"), format!("{at}/sub:/x"), format!("{at}/sub:/x:rw")] {
            let why = adapter.refuses(&mount(&adapter, "true", &text)).await;
            assert!(why.contains("read-only"), "{}: {why}", adapter.name);
        }
        adapter.end().await;
    }
}

#[tokio::test]
async fn no_directory_above_an_engine_socket_is_mounted_even_if_shared() {
    for adapter in adapters(&shares(&[(Path::new("/"), true)])) {
        let socket = Path::new(adapter.url.trim_start_matches("unix://")).to_owned();
        for source in socket.ancestors() {
            let text = format!("{}:/x:ro", source.display());
            let why = adapter.refuses(&mount(&adapter, "ls /x", &text)).await;
            assert!(why.contains("container engine's socket"), "{}: {text}: {why}", adapter.name);
        }
        adapter.end().await;
    }
}
