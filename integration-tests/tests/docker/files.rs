//! Files: what a job sees of the host, and what can be copied out of it.

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
        let (left, kept) = bench.pass(&bench.job(&line, json!({}))).await;
        assert_eq!(kept.text(), "", "it is empty at its start");
        let packed = bench.docker.export(&bench.run, &left, JOB_DIR).await.unwrap();
        let files = files_of(&collect(packed).await).await;
        // podman's Docker API omits the name of the volume's directory.
        let has = |name: &str, text: &[u8]| {
            let below =
                |path: &str| path.trim_start_matches("jobworkdir").trim_start_matches('/') == name;
            files.iter().any(|(path, content)| below(path) && content == text)
        };
        assert!(has("out/a", b"one\n") && has("b", b"two\n"), "{files:?}");
        let path = format!("{JOB_DIR}/none");
        match bench.docker.export(&bench.run, &left, &path).await.map(drop) {
            Err(ExecError::NoSuchPath { path: named }) => assert_eq!(named, path),
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
        let (left, _) = bench.pass(&StepSpec { work_dir: Some("/tmp".into()), ..job }).await;
        let packed = bench.docker.export(&bench.run, &left, "file").await.unwrap();
        let files = files_of(&collect(packed).await).await;
        assert_eq!(files, [("file".to_owned(), b"here\n".to_vec())]);
        bench.destroy().await;
    }
}

#[tokio::test]
async fn a_user_other_than_root_can_write_to_the_directory() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        bench.pass(&bench.job("true", json!({}))).await;
        let made = containers(&engine, &bench.run.run).await;
        let image = image_of(&engine, &made[0], "USER nobody").await;
        let job = bench.job(&format!("id -un; echo x > {JOB_DIR}/a"), json!({ "image": image }));
        let job = StepSpec { entrypoint: Some(Vec::new()), ..job };
        let (_, kept) = bench.pass(&job).await;
        assert_eq!(kept.text(), "nobody\n");
        bench.destroy().await;
        ask(&engine, Method::DELETE, &format!("/images/{image}?force=true")).await;
    }
}

#[tokio::test]
async fn a_job_sees_the_directories_and_volumes_that_it_mounts() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let dir = engine.dir();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open).unwrap();
        std::fs::write(dir.path().join("given"), "of the host\n").unwrap();
        let volume = format!("t-{}", uuid::Uuid::new_v4());
        let at = dir.path().display();
        let mounts = [format!("{at}:/ro:ro"), format!("{at}:/rw"), format!("{volume}:/data")];
        let line = "cat /ro/given && ! touch /ro/x 2>/dev/null && echo back > /rw/back && echo kept > /data/k";
        let (_, kept) = bench.pass(&bench.job(line, json!({ "mounts": mounts }))).await;
        assert_eq!(kept.text(), "of the host\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("back")).unwrap(), "back\n");
        let shows = bench.job("cat /data/k", json!({ "mounts": [format!("{volume}:/data:ro")] }));
        assert_eq!(bench.pass(&shows).await.1.text(), "kept\n", "a volume with a name stays");
        bench.destroy().await;
        ask(&engine, Method::DELETE, &format!("/volumes/{volume}")).await;
    }
}

#[tokio::test]
async fn no_job_can_mount_an_engine_socket_or_an_unshared_directory() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let socket = engine.url.strip_prefix("unix://").unwrap();
        let above = std::path::Path::new(socket).parent().unwrap().display().to_string();
        for source in [socket, &above, "/"] {
            let job = bench.job("true", json!({ "mounts": [format!("{source}:/x")] }));
            match bench.try_step(&job).await {
                Err(ExecError::Unsupported(said)) => assert!(said.contains("socket"), "{said}"),
                other => panic!("{source}: {other:?}"),
            }
        }
        let shared = SharedDir { path: "/srv".into(), is_read_only: false };
        let granted = Some(Granted { dirs: vec![shared], ..Granted::default() });
        let access = HostAccess { granted, ..HostAccess::default() };
        let shared = Options { access, ..Options::new(&engine.url) };
        let docker = Docker::connect(shared).unwrap();
        let bench = Bench { docker, ..bench };
        for (mount, told) in [("/etc:/x", "BOB_SHARED_DIRS"), ("v:/x:idmap", "no option")] {
            match bench.try_step(&bench.job("true", json!({ "mounts": [mount] }))).await {
                Err(ExecError::Unsupported(said)) => assert!(said.contains(told), "{said}"),
                other => panic!("{mount}: {other:?}"),
            }
        }
        bench.destroy().await;
    }
}
