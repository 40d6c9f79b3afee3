//! Steps: the port's contract, their complete output, their end, and their secrets.

use std::sync::Arc;

use hyper::Method;
use protocol::id::Epoch;
use protocol::pipeline::{ExecutorKind, Limits, Shell, Vars};
use runner::exec::Executors;
use runner::exec::docker::{Docker, Options};
use runner::exec::local::{Local, Options as LocalOptions};
use runner::ports::{
    ExecError, Executor, Gate, LogSink, RunScope, Script, Secret, StepSecret, StepSecrets,
    StepSpec, Steps as _, StopLevel, Workspace,
};
use serde_json::{Value, json};
use test_support::conformance::{self, Act, ExecutorSubject};
use test_support::engine::{OutputRecorder, until};

use super::engine::{Bench, CuttableConnection, ask, containers, described, engines, image_of};

/// The executor of a worker whose only engine is this one.
fn executor(docker: Docker) -> Arc<dyn Executor> {
    let host = Local::new(LocalOptions {
        supervisor: ("/nowhere".into(), Vec::new()),
        runs: "/nowhere".into(),
        work_dir: None,
        cgroup: None,
        inherited: Vec::new(),
        memory: Vec::new(),
    });
    Arc::new(Executors::new(None, Arc::new(host)).with_job_engine(Some(Arc::new(docker))))
}

#[tokio::test]
async fn the_engine_passes_the_executor_conformance_suite() {
    for engine in engines() {
        let connect = || Docker::connect(Options::new(&engine.url)).unwrap();
        let ids = (connect().info().await.unwrap().id, connect().info().await.unwrap().id);
        assert!(!ids.0.is_empty() && ids.0 == ids.1, "the engine has one name: {ids:?}");
        Box::pin(conformance::executor(ExecutorSubject {
            prefix: uuid::Uuid::new_v4().simple().to_string(),
            executor: executor(connect()),
            other: executor(connect()),
            kind: ExecutorKind::Docker,
            with: serde_json::Map::from_iter([("image".to_owned(), json!(engine.image))]),
            has_a_shell: true,
            on_images: false,
            dir: "/tmp".into(),
            image: engine.image,
            missing: "localhost/no-such-image:1".into(),
            words: Act::shell_words,
        }))
        .await;
    }
}

#[tokio::test]
async fn output_arrives_byte_for_byte() {
    let cases: &[(&str, &[u8], &[u8])] = &[
        ("printf '   --- indented\\n\\n\\t- x\\n'", b"   --- indented\n\n\t- x\n", b""),
        ("printf 'no newline'", b"no newline", b""),
        ("printf '\\001\\000\\000\\000\\000\\000\\000\\377'", b"\x01\0\0\0\0\0\0\xff", b""),
        ("echo one; echo two >&2", b"one\n", b"two\n"),
        ("true", b"", b""),
    ];
    for engine in engines() {
        let bench = Bench::new(&engine);
        for (line, stdout, stderr) in cases {
            let written = bench.written(line, json!({})).await;
            assert_eq!((&written.0[..], &written.1[..]), (*stdout, *stderr), "{line}");
        }
        let long = "head -c 3000000 /dev/zero | tr '\\0' x";
        assert_eq!(
            bench.written(long, json!({})).await.0.len(),
            3_000_000,
            "a line without a newline"
        );
        bench.destroy().await;
    }
}

#[tokio::test]
async fn a_terminal_merges_both_streams_whatever_its_first_bytes() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let line =
            "printf '\\001\\000\\000\\000\\000\\000\\000\\004'; [ -t 1 ] && echo tty; echo err >&2";
        let (stdout, stderr) = bench.written(line, json!({ "tty": true })).await;
        assert_eq!(stdout, b"\x01\0\0\0\0\0\0\x04tty\r\nerr\r\n", "{}", engine.name);
        assert_eq!(stderr, b"");
        let (stdout, _) = bench.written("[ -t 1 ] || echo none", json!({})).await;
        assert_eq!(stdout, b"none\n");
        bench.destroy().await;
    }
}

#[tokio::test]
async fn output_after_a_broken_connection_is_read_from_the_engines_log() {
    // A connection can also break so late that the step has ended by the next look at it.
    let early = engines().into_iter().map(|engine| (engine, false));
    for (engine, ends_before_look) in early.chain(engines().into_iter().map(|it| (it, true))) {
        let way = CuttableConnection::to(&engine).await;
        let dir = engine.dir();
        let docker = Docker::connect(Options::new(&way.url)).unwrap();
        let bench = Bench { docker, ..Bench::new(&engine) };
        let line = "printf 'one\\n\\377'; echo err >&2; until [ -e /x/go ]; do sleep 0.1; done; \
                    printf 'two\\000\\376\\n'; head -c 100000 /dev/zero | tr '\\0' y; echo end >&2; exit 3";
        let job = bench.job(line, json!({ "mounts": [format!("{}:/x", dir.path().display())] }));
        let kept = Arc::new(OutputRecorder::default());
        let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
        let running = bench.docker.run_step(
            &bench.run,
            &Workspace::None,
            &job,
            Gate::open(),
            out,
            &bench.stop,
        );
        let cutting = async {
            let begun = || async { kept.stdout().len() >= 5 && kept.stderr().len() >= 4 };
            until("the first lines have come", begun).await;
            way.cut();
            std::fs::write(dir.path().join("go"), "").unwrap();
            if ends_before_look {
                let id = containers(&engine, &bench.run.run).await.remove(0);
                until("the step has ended", || async {
                    described(&engine, &id).await["State"]["Status"] == "exited"
                })
                .await;
            }
            way.restore();
        };
        let (ran, ()) = tokio::join!(running, cutting);
        assert_eq!(ran.unwrap().exit.code, 3);
        let whole = [&b"one\n\xfftwo\0\xfe\n"[..], &[b'y'; 100_000]].concat();
        assert!(kept.stdout() == whole, "{}: {} bytes", engine.name, kept.stdout().len());
        assert_eq!(kept.stderr(), b"err\nend\n");
        bench.destroy().await;
    }
}

#[tokio::test]
async fn the_standard_input_of_a_step_is_empty() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        assert_eq!(bench.written("cat; echo end", json!({})).await.0, b"end\n");
        bench.destroy().await;
    }
}

fn given(name: &str, env: Option<&str>, value: &[u8]) -> StepSecret {
    let env = env.map(str::to_owned);
    StepSecret { name: name.to_owned(), env, value: Secret::new(value) }
}

#[tokio::test]
async fn a_secret_is_a_file_in_memory_that_the_engine_does_not_see() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let line = "cat \"$BOB_SECRETS/key\" | md5sum; grep -c ' /run/secrets tmpfs ' /proc/mounts; \
                    cat; echo \"$TOKEN\" | tr n-za-m a-z; touch /started; umask";
        let value: Vec<u8> = (0..=255).cycle().take(40_000).collect();
        let secrets = vec![given("key", None, &value), given("token", Some("TOKEN"), b"uhagre2")];
        let job = bench.job(line, json!({}));
        let secrets = StepSecrets { granted: secrets, forbidden: None };
        let (_, kept) = bench.pass(&StepSpec { secrets, ..job }).await;
        let text = kept.text();
        let lines: Vec<&str> = text.lines().collect();
        let sum = format!("{:x}", md5(&value));
        assert_eq!(
            lines,
            [format!("{sum}  -").as_str(), "1", "hunter2", "0022"],
            "{}",
            engine.name
        );
        let made = containers(&engine, &bench.run.run).await;
        let said = described(&engine, &made[0]).await.to_string();
        assert!(!said.contains("uhagre2"), "{said}");
        bench.destroy().await;
    }
}

/// The MD5 digest, computed with the system's program to avoid a dependency.
fn md5(bytes: &[u8]) -> u128 {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut program = Command::new("md5sum");
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let said = child.wait_with_output().unwrap().stdout;
    u128::from_str_radix(std::str::from_utf8(&said[..32]).unwrap(), 16).unwrap()
}

#[tokio::test]
async fn a_step_with_a_terminal_gets_no_secret() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let job = bench.job("true", json!({ "tty": true }));
        let secrets = StepSecrets { granted: vec![given("a", None, b"x")], forbidden: None };
        match bench.try_step(&StepSpec { secrets, ..job }).await {
            Err(ExecError::Unsupported(said)) => assert!(said.contains("terminal"), "{said}"),
            other => panic!("{other:?}"),
        }
        bench.destroy().await;
    }
}

#[tokio::test]
async fn a_script_ignores_the_images_entrypoint_and_a_step_can_set_its_own() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        bench.pass(&bench.job("true", json!({}))).await;
        let made = containers(&engine, &bench.run.run).await;
        let image = image_of(&engine, &made[0], "ENTRYPOINT [\"sh\",\"-c\"]").await;
        let script = |program: &str| {
            let programs = vec![program.to_owned()];
            let script = Script { shell: Shell::Sh, programs, goes_on: false };
            let job = bench.job("", json!({ "image": image }));
            StepSpec { script: Some(script), words: Vec::new(), ..job }
        };
        let command = bench.job("exit 4", json!({ "image": image }));
        for (step, code) in [
            (script("exit 7"), 7),
            // The image's `sh -c` runs the word `sh`; the other words become its arguments.
            (command.clone(), 0),
            (StepSpec { entrypoint: Some(Vec::new()), ..command }, 4),
            (
                StepSpec {
                    entrypoint: Some(vec!["env".into(), "A=1".into()]),
                    ..script("exit $A")
                },
                1,
            ),
        ] {
            let (ran, _) = bench.try_step(&step).await.unwrap();
            let name = engine.name;
            assert_eq!(ran.exit.code, code, "{name}: {:?} {:?}", step.words, step.script);
            bench.docker.discard(&bench.run, ran.workspace).await;
        }
        bench.destroy().await;
        ask(&engine, Method::DELETE, &format!("/images/{image}?force=true")).await;
    }
}

#[tokio::test]
async fn overlong_words_or_variables_give_one_error_and_no_output() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let job = bench.job("true", json!({}));
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let (long, many) = ("x".repeat(200_000), "x".repeat(100_000));
        let many = [&["echo"][..], &[many.as_str(); 40]].concat();
        for (step, told) in [
            (StepSpec { words: words(&["echo", &long]), ..job.clone() }, "word 2 of its command"),
            (
                StepSpec { env: Vars::from([("LONG".into(), long.clone())]), ..job.clone() },
                "variable LONG has",
            ),
            (StepSpec { words: words(&many), ..job.clone() }, "longer than the kernel takes"),
        ] {
            let kept = Arc::new(OutputRecorder::default());
            let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
            let on = Workspace::None;
            let ran = bench.docker.run_step(&bench.run, &on, &step, Gate::open(), out, &bench.stop);
            match ran.await {
                Err(ExecError::Start { code: 126, cause, .. }) => {
                    assert!(cause.contains(told), "{}: {cause}", engine.name);
                }
                other => panic!("{}: {told}: {other:?}", engine.name),
            }
            assert_eq!(String::from_utf8_lossy(&kept.stderr()), "", "{}: {told}", engine.name);
        }
        bench.destroy().await;
    }
}

#[tokio::test]
async fn limits_are_enforced_or_refused() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let limits = Limits { cpu: None, mem: Some("16M".parse().unwrap()) };
        let eats = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}";
        let job = StepSpec { limits, ..bench.job(eats, json!({})) };
        if bench.docker.info().await.unwrap().limits_refused.is_some() {
            match bench.try_step(&job).await {
                Err(ExecError::Unsupported(said)) => {
                    assert!(said.contains("limits cannot be enforced"), "{said}");
                }
                other => panic!("{}: {other:?}", engine.name),
            }
        } else {
            // An engine learns of the kernel's kill and of the end of the process from two events,
            // which can arrive in either order. It can report the end before it knows the cause.
            let mut reported = false;
            for _ in 0..10 {
                let (ran, _) = bench.try_step(&job).await.unwrap();
                assert_eq!(ran.exit.code, 137, "{}", engine.name);
                bench.docker.discard(&bench.run, ran.workspace).await;
                reported = ran.exit.oom;
                if reported {
                    break;
                }
            }
            assert!(reported, "{} never reported that memory ran out", engine.name);
        }
        bench.destroy().await;
    }
}

#[tokio::test]
async fn a_network_that_only_podman_supports_is_refused_with_a_clear_message() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let job = bench.job("true", json!({}));
        for (network, told) in
            [("slirp4netns", "podman's alone"), ("container:x", "outside of the run")]
        {
            match bench.try_step(&StepSpec { network: Some(network.into()), ..job.clone() }).await {
                Err(ExecError::Unsupported(said)) => assert!(said.contains(told), "{said}"),
                other => panic!("{other:?}"),
            }
        }
        bench.destroy().await;
    }
}

#[tokio::test]
async fn the_next_owner_ends_containers_of_the_last_one_and_older_owners_do_no_harm() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let next = RunScope { epoch: Epoch(2), ..bench.run.clone() };
        let next = Bench { run: next, ..Bench::new(&engine) };
        let job = bench.job("echo ready; exec sleep 1000", json!({}));
        let runs = async || {
            let running = Box::pin(next.try_step(&job));
            let harming = async {
                until("it runs", || async {
                    !containers(&engine, &bench.run.run).await.is_empty()
                })
                .await;
                bench.docker.end(&bench.run).await.unwrap();
                match bench.try_step(&job).await {
                    Err(ExecError::NotStarted) => {}
                    other => panic!("a later owner has started this step: {other:?}"),
                }
                next.stop.raise(StopLevel::Kill);
            };
            tokio::join!(running, harming).0
        };
        let ran = runs().await;
        assert_eq!(ran.unwrap().0.exit.code, 137, "it must end by SIGKILL");
        let left = bench.docker.leftovers().await.unwrap();
        assert_eq!(left.iter().filter(|left| left.run == bench.run.run).count(), 1);
        let third = RunScope { epoch: Epoch(3), ..bench.run.clone() };
        bench.docker.end(&third).await.unwrap();
        assert!(
            containers(&engine, &bench.run.run).await.is_empty(),
            "a later owner ends all containers"
        );
        bench.destroy().await;
    }
}

#[tokio::test]
async fn a_container_is_labelled_with_its_run_and_step() {
    for engine in engines() {
        let bench = Bench::new(&engine);
        let (_, _) = bench.pass(&bench.job("true", json!({ "namespace": "tests" }))).await;
        let made = containers(&engine, &bench.run.run).await;
        let said = described(&engine, &made[0]).await;
        let labels = &said["Config"]["Labels"];
        let of = |name: &str| labels[name].as_str().unwrap_or_default().to_owned();
        assert_eq!(of("namespace"), "tests", "{labels}");
        assert_eq!(of("bob.run"), bench.run.run.to_string());
        assert_eq!(
            (of("bob.epoch"), of("bob.attempt"), of("bob.role")),
            ("1".into(), "1".into(), "step".into())
        );
        assert_eq!(said["Config"]["OpenStdin"], Value::Bool(false));
        assert_eq!(
            said["Name"].as_str().unwrap().trim_start_matches('/'),
            format!("bob-{}-0", bench.run.run)
        );
        bench.destroy().await;
    }
}
