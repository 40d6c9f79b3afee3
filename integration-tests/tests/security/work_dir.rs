//! The working directory of a container. podman 3.0 to 5.7 resolves it on the host if a symbolic
//! link in it leads out of the container, and creates the directory there (CVE-2026-55686).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hyper::Method;
use runner::exec::podman::Options;
use runner::ports::{ExecError, StepSpec, Steps as _, Workspace};
use serde_json::json;
use tempfile::TempDir;
use test_support::engine::{Api, Bench, shell};

use super::docker::{self, ask, containers, engines, image_of};

/// A directory on the engine's host that its user can write to.
fn outside(url: &str) -> TempDir {
    let beside = Path::new(url.strip_prefix("unix://").unwrap()).parent().unwrap();
    let dir = tempfile::tempdir_in(beside).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

fn is_empty(dir: &TempDir) -> bool {
    std::fs::read_dir(dir.path()).unwrap().next().is_none()
}

/// Creates links that lead out of a container, and dangling ones.
fn links(outside: &TempDir) -> String {
    let at = outside.path().display();
    format!("ln -s {at} /l; ln -s /gone/away /dangling; ln -s /loop /loop; echo x > /file")
}

/// Working directories, and the output or error of a step there.
fn cases(outside: &TempDir) -> Vec<(&'static str, Result<String, &'static str>)> {
    vec![
        ("/l/sub", Ok(format!("{}/sub\n", outside.path().display()))),
        ("/l", Ok(format!("{}\n", outside.path().display()))),
        ("/new/deep", Ok("/new/deep\n".to_owned())),
        ("/dangling", Ok("/gone/away\n".to_owned())),
        ("/file", Err("is not a directory")),
        ("/file/x", Err("is not a directory")),
        ("/loop", Err("in a circle")),
    ]
}

#[tokio::test]
async fn podman_creates_the_images_working_directory_only_inside_the_container() {
    let Some(maker) = Bench::from_env() else { return };
    let (api, outside) = (Api::of(&maker.url), outside(&maker.url));
    let base = maker.prepare().await;
    let (ran, _) = maker.step(&base, &shell(0, &links(&outside))).await;
    let Workspace::Container { id, .. } = &ran.workspace else { panic!("{:?}", ran.workspace) };
    for (dir, expected) in cases(&outside) {
        let name = format!("localhost/dir-{}", uuid::Uuid::new_v4());
        api.commit(id, Some(&name), &[&format!("WORKDIR {dir}"), "LABEL bob.run="]).await;
        let bench = Bench::new(&Options::new(&maker.url), &format!("{name}:latest"));
        let base = bench.prepare().await;
        match (bench.try_step(&base, &shell(0, "pwd; [ -w . ]")).await, expected) {
            (Ok((ran, kept)), Ok(text)) => {
                assert_eq!((ran.exit.code, kept.text()), (0, text), "{dir}");
            }
            (Err(ExecError::Start { code: 126, cause, .. }), Err(told)) => {
                assert!(cause.contains(told) && cause.contains(dir), "{dir}: {cause}");
            }
            other => panic!("{dir}: {other:?}"),
        }
        assert!(is_empty(&outside), "{dir}: podman has created a directory on its host");
        bench.destroy().await;
        api.remove_image(&format!("{name}:latest")).await;
    }
    maker.podman.discard(&maker.run, ran.workspace).await;
    maker.destroy().await;
}

#[tokio::test]
async fn podman_follows_no_symlink_that_a_step_put_into_its_working_directory() {
    let Some(maker) = Bench::from_env() else { return };
    let (api, outside) = (Api::of(&maker.url), outside(&maker.url));
    let name = format!("localhost/dir-{}:latest", uuid::Uuid::new_v4());
    let dockerfile = format!("FROM {}\nWORKDIR /srv/deep\n", maker.run.image);
    api.build(&name, &dockerfile).await;
    let bench = Bench::new(&Options::new(&maker.url), &name);
    let base = bench.prepare().await;
    let replaced = format!("cd /; rm -r /srv; ln -s {} /srv", outside.path().display());
    let (left, _) = bench.pass(&base, &shell(0, &replaced)).await;
    let (_, kept) = bench.pass(&left, &shell(1, "pwd")).await;
    assert_eq!(kept.text(), format!("{}/deep\n", outside.path().display()));
    assert!(is_empty(&outside), "podman has created a directory on its host");
    bench.destroy().await;
    api.remove_image(&name).await;
}

#[tokio::test]
async fn docker_creates_the_images_working_directory_only_inside_the_container() {
    for engine in engines() {
        let (bench, outside) = (docker::Bench::new(&engine), outside(&engine.url));
        bench.pass(&bench.job(&links(&outside), json!({}))).await;
        let (made, mut images) = (containers(&engine, &bench.run.run).await, Vec::new());
        for (dir, expected) in cases(&outside) {
            let image = image_of(&engine, &made[0], &format!("WORKDIR {dir}")).await;
            let job = bench.job("pwd", json!({ "image": image }));
            let job = StepSpec { position: 1, entrypoint: Some(Vec::new()), ..job };
            match (bench.try_step(&job).await, expected) {
                (Ok((ran, kept)), Ok(text)) => {
                    assert_eq!((ran.exit.code, kept.text()), (0, text), "{}: {dir}", engine.name);
                    bench.docker.discard(&bench.run, ran.workspace).await;
                }
                (Err(ExecError::Start { code: 126, cause, .. }), Err(told)) => {
                    assert!(cause.contains(told), "{}: {dir}: {cause}", engine.name);
                }
                other => panic!("{}: {dir}: {other:?}", engine.name),
            }
            assert!(is_empty(&outside), "{}: {dir}: created on the host", engine.name);
            images.push(image);
        }
        bench.destroy().await;
        for image in images {
            ask(&engine, Method::DELETE, &format!("/images/{image}?force=true")).await;
        }
    }
}
