//! Files of the host that a job can see, and files that can be copied out of a job.

use hyper::Method;
use runner::exec::access::{Granted, HostAccess, SharedDir};
use runner::exec::docker::{Docker, Options};
use runner::ports::{ExecError, JOB_DIR, StepSpec, Steps as _};
use serde_json::json;
use test_support::engine::{collect, files_of};

use super::engine::{Bench, ask, containers, engines, image_of};

#[tokio::test]
async fn files_in_the_directory_of_a_job_are_read_after_its_end() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let line =
            format!("cd {JOB_DIR} && ls -A && mkdir -p out && echo one > out/a && echo two > b");
        let (workspace, output) = bench.pass(&bench.job(&line, json!({}))).await;
        assert_eq!(output.text(), "", "the directory must be empty at first");
        let tar = bench.docker.export(&bench.run, &workspace, JOB_DIR).await.unwrap();
        let files = files_of(&collect(tar).await).await;
        // Paths begin with the name of the directory on docker.io, but not on podman.
        let has = |name: &str, text: &[u8]| {
            files.iter().any(|(path, content)| {
                let path = path.trim_start_matches("jobworkdir").trim_start_matches('/');
                path == name && content == text
            })
        };
        assert!(has("out/a", b"one\n") && has("b", b"two\n"), "{files:?}");
        let path = format!("{JOB_DIR}/none");
        match bench.docker.export(&bench.run, &workspace, &path).await.map(drop) {
            Err(ExecError::NoSuchPath { path: missing }) => assert_eq!(missing, path),
            other => panic!("{other:?}"),
        }
        bench.destroy().await;
    }
}

#[tokio::test]
async fn a_relative_path_is_resolved_in_the_working_directory() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let job = bench.job("echo here > file", json!({}));
        let (workspace, _) = bench.pass(&StepSpec { work_dir: Some("/tmp".into()), ..job }).await;
        let tar = bench.docker.export(&bench.run, &workspace, "file").await.unwrap();
        let files = files_of(&collect(tar).await).await;
        assert_eq!(files, [("file".to_owned(), b"here\n".to_vec())]);
        bench.destroy().await;
    }
}

#[tokio::test]
async fn a_user_other_than_root_can_write_to_the_job_directory() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        bench.pass(&bench.job("true", json!({}))).await;
        let ids = containers(&engine, &bench.run.run).await;
        let image = image_of(&engine, &ids[0], "USER nobody").await;
        let job = bench.job(&format!("id -un; echo x > {JOB_DIR}/a"), json!({ "image": image }));
        let job = StepSpec { entrypoint: Some(Vec::new()), ..job };
        let (_, output) = bench.pass(&job).await;
        assert_eq!(output.text(), "nobody\n");
        bench.destroy().await;
        ask(&engine, Method::DELETE, &format!("/images/{image}?force=true")).await;
    }
}

#[tokio::test]
async fn a_job_sees_the_directories_and_volumes_that_it_mounts() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let dir = engine.dir();
        let writable = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path(), writable).unwrap();
        std::fs::write(dir.path().join("input"), "from the host\n").unwrap();
        let volume = format!("t-{}", uuid::Uuid::new_v4());
        let source = dir.path().display();
        let mounts =
            [format!("{source}:/ro:ro"), format!("{source}:/rw"), format!("{volume}:/data")];
        let line = "cat /ro/input && ! touch /ro/x 2>/dev/null && echo from the job > /rw/output \
                    && echo kept > /data/k";
        let (_, output) = bench.pass(&bench.job(line, json!({ "mounts": mounts }))).await;
        assert_eq!(output.text(), "from the host\n");
        let written = std::fs::read_to_string(dir.path().join("output")).unwrap();
        assert_eq!(written, "from the job\n");
        let next = bench.job("cat /data/k", json!({ "mounts": [format!("{volume}:/data:ro")] }));
        let (_, output) = bench.pass(&next).await;
        assert_eq!(output.text(), "kept\n", "a named volume must outlive its first container");
        bench.destroy().await;
        ask(&engine, Method::DELETE, &format!("/volumes/{volume}")).await;
    }
}

#[tokio::test]
async fn no_job_can_mount_an_engine_socket_or_an_unshared_directory() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let socket = engine.url.strip_prefix("unix://").unwrap();
        let socket_dir = std::path::Path::new(socket).parent().unwrap().display().to_string();
        for source in [socket, &socket_dir, "/"] {
            let job = bench.job("true", json!({ "mounts": [format!("{source}:/x")] }));
            match bench.try_step(&job).await {
                Err(ExecError::Unsupported(why)) => assert!(why.contains("socket"), "{why}"),
                other => panic!("{source}: {other:?}"),
            }
        }
        let shared = SharedDir { path: "/srv".into(), is_read_only: false };
        let granted = Some(Granted { dirs: vec![shared], ..Granted::default() });
        let access = HostAccess { granted, ..HostAccess::default() };
        let options = Options { access, ..Options::new(&engine.url) };
        let docker = Docker::connect(options).unwrap();
        let bench = Bench { docker, ..bench };
        for (mount, reason) in [("/etc:/x", "BOB_SHARED_DIRS"), ("v:/x:idmap", "unknown option")] {
            match bench.try_step(&bench.job("true", json!({ "mounts": [mount] }))).await {
                Err(ExecError::Unsupported(why)) => assert!(why.contains(reason), "{why}"),
                other => panic!("{mount}: {other:?}"),
            }
        }
        bench.destroy().await;
    }
}
