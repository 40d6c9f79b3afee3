//! Steps in real containers: their output, their end, their files and their isolation.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use protocol::pipeline::{ExecutorKind, Vars};
use runner::exec::podman::{Options, Podman};
use runner::ports::{ExecError, Gate, LogSink, StepSpec, Steps as _, StopLevel, Workspace};
use std::sync::Arc;
use test_support::conformance::{self, Act, ExecutorSubject};
use test_support::engine::{Bench, OutputRecorder, shell, step};

#[tokio::test]
async fn the_engine_passes_the_executor_conformance_suite() {
    let Some(bench) = Bench::from_env() else { return };
    let other = Podman::connect(Options::new(&bench.url)).unwrap();
    conformance::executor(ExecutorSubject {
        prefix: uuid::Uuid::new_v4().simple().to_string(),
        executor: Arc::new(bench.podman),
        other: Arc::new(other),
        kind: ExecutorKind::Podman,
        with: serde_json::Map::new(),
        has_a_shell: true,
        on_images: true,
        dir: "/tmp".into(),
        image: bench.run.image,
        missing: "localhost/no-such-image:1".into(),
        words: Act::shell_words,
    })
    .await;
}

/// The output of a line of shell.
async fn written(bench: &Bench, line: &str) -> (Vec<u8>, Vec<u8>) {
    let base = bench.prepare().await;
    let (ran, kept) = bench.step(&base, &shell(0, line)).await;
    assert_eq!(ran.exit.code, 0, "{line}");
    bench.podman.discard(&bench.run, ran.workspace).await;
    (kept.stdout(), kept.stderr())
}

#[tokio::test]
async fn output_arrives_byte_for_byte() {
    let Some(bench) = Bench::from_env() else { return };
    let cases: &[(&str, &[u8])] = &[
        ("printf '123456789\\n'", b"123456789\n"),
        ("printf '123456789012\\n'", b"123456789012\n"),
        (
            "printf '%064d\\n' 7",
            b"0000000000000000000000000000000000000000000000000000000000000007\n",
        ),
        ("printf '   --- indented\\n\\n\\t- x\\n'", b"   --- indented\n\n\t- x\n"),
        ("printf 'no newline'", b"no newline"),
        ("printf 'a\\r\\nb\\rc\\n'", b"a\r\nb\rc\n"),
        ("printf 'nul\\000\\377\\n'", b"nul\0\xff\n"),
        ("true", b""),
    ];
    for (line, expected) in cases {
        let (stdout, stderr) = written(&bench, line).await;
        assert_eq!(stdout, *expected, "{line}");
        assert_eq!(stderr, b"", "{line}");
    }
    bench.destroy().await;
}

#[tokio::test]
async fn a_line_of_one_mebibyte_and_binary_output_arrive_complete() {
    let Some(bench) = Bench::from_env() else { return };
    let (stdout, _) = written(&bench, "head -c 1048576 /dev/zero | tr '\\0' y; echo").await;
    assert_eq!(stdout.len(), 1_048_577);
    assert!(stdout[..1_048_576].iter().all(|byte| *byte == b'y'));
    // All byte values, and a checksum computed in the container on the other stream.
    let line = "head -c 3000000 /dev/urandom > /tmp/x; cat /tmp/x; sha256sum < /tmp/x >&2";
    let (stdout, stderr) = written(&bench, line).await;
    assert_eq!(stdout.len(), 3_000_000);
    let digest = String::from_utf8(stderr).unwrap();
    assert_eq!(digest.split(' ').next().unwrap(), hex_of(&stdout));
    bench.destroy().await;
}

fn hex_of(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[tokio::test]
async fn a_hundred_thousand_lines_arrive_in_order_with_streams_separated() {
    let Some(bench) = Bench::from_env() else { return };
    let (stdout, stderr) = written(&bench, "seq 1 100000; seq 1 1000 >&2").await;
    let lines = |to: u32| (1..=to).map(|n| format!("{n}\n")).collect::<String>();
    assert!(stdout == lines(100_000).into_bytes(), "{} bytes came", stdout.len());
    assert!(stderr == lines(1000).into_bytes(), "{} bytes came", stderr.len());
    bench.destroy().await;
}

#[tokio::test]
async fn the_exit_code_is_that_of_the_command() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    for (line, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)] {
        let (ran, _) = bench.step(&base, &shell(0, line)).await;
        assert_eq!((ran.exit.code, ran.exit.oom), (code, false), "{line}");
        bench.podman.discard(&bench.run, ran.workspace).await;
    }
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_sees_the_files_of_its_predecessor_but_not_its_settings() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let first = StepSpec {
        env: Vars::from([("SECRET".into(), "s3".into()), ("PATH".into(), "/bin:/mine".into())]),
        work_dir: Some("/tmp".into()),
        ..shell(0, "echo \"$SECRET\" > made; pwd; echo $PATH")
    };
    let (left, kept) = bench.pass(&base, &first).await;
    assert_eq!(kept.text(), "/tmp\n/bin:/mine\n");
    let (left, kept) =
        bench.pass(&left, &shell(1, "cat /tmp/made; pwd; echo ${SECRET-unset} $PATH")).await;
    assert_eq!(kept.text(), "s3\n/\nunset /usr/local/bin:/usr/bin:/bin\n");
    // Two steps on the same workspace do not see each other's files.
    let (_, _) = bench.pass(&left, &shell(2, "touch /only-here")).await;
    let (_, kept) = bench.pass(&left, &shell(3, "ls /only-here 2>/dev/null || echo none")).await;
    assert_eq!(kept.text(), "none\n");
    bench.destroy().await;
}

#[tokio::test]
async fn standard_input_is_closed_and_there_is_no_terminal() {
    let Some(bench) = Bench::from_env() else { return };
    let (stdout, _) = written(&bench, "cat; test -t 0 || test -t 1 || echo none").await;
    assert_eq!(stdout, b"none\n");
    bench.destroy().await;
}

#[tokio::test]
async fn a_missing_command_or_directory_is_reported() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let nowhere = StepSpec { work_dir: Some("/nowhere".into()), ..step(0, &["true"]) };
    for (step, expected, words) in [
        (step(0, &["no-such-program", "x"]), 127, "no-such-program"),
        (step(0, &["/no/such/program"]), 127, "`/no/such/program` does not exist"),
        (step(0, &["/etc/passwd"]), 126, "ermission denied"),
        (nowhere, 126, "no working directory /nowhere"),
        (
            StepSpec { work_dir: Some("/etc/passwd".into()), ..step(0, &["true"]) },
            126,
            "is not a directory",
        ),
    ] {
        match bench.try_step(&base, &step).await {
            Err(ExecError::Start { code, cause, .. }) => {
                assert_eq!(code, expected, "{cause}");
                assert!(cause.contains(words), "{cause}");
            }
            other => panic!("{:?} ended as {other:?}", step.words),
        }
    }
    bench.destroy().await;
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_reported_with_the_reason() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    // The init runs a file without a `#!` line with a shell, so only the unit tests have that case.
    let made =
        r"printf '#!/bin/sh\r\n' > /crlf; printf '#!/no/such\n' > /lost; chmod 755 /crlf /lost";
    let (left, _) = bench.pass(&base, &shell(0, made)).await;
    for (program, expected, words) in [
        ("/crlf", 127, "`/crlf` ends with a carriage return (CRLF)"),
        ("/lost", 127, "the interpreter /no/such of `/lost` does not exist"),
    ] {
        match bench.try_step(&left, &step(1, &[program])).await {
            Err(ExecError::Start { code, cause, .. }) => {
                assert_eq!(code, expected, "{cause}");
                assert!(cause.contains(words), "{cause}");
            }
            Ok((ran, kept)) => panic!(
                "{program} ended with {:?}: {}",
                ran.exit,
                String::from_utf8_lossy(&kept.stderr())
            ),
            Err(other) => panic!("{program}: {other}"),
        }
    }
    bench.destroy().await;
}

#[tokio::test]
async fn overlong_words_or_variables_give_one_error_and_no_output() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let long = "x".repeat(200_000);
    let variable = Vars::from([("LONG".to_owned(), long.clone())]);
    // The total length is checked only when the container starts, in its output.
    let many = "x".repeat(100_000);
    let words = [&["echo"][..], &[many.as_str(); 40]].concat();
    for (step, told) in [
        (step(0, &["echo", &long]), "word 2 of its command has 200000 bytes"),
        (StepSpec { env: variable, ..step(0, &["true"]) }, "variable LONG has 200005 bytes"),
        (step(0, &words), "longer than the kernel takes"),
    ] {
        let kept = Arc::new(OutputRecorder::default());
        let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
        let ran = bench.podman.run_step(&bench.run, &base, &step, Gate::open(), out, &bench.stop);
        match ran.await {
            Err(ExecError::Start { code: 126, cause, .. }) => {
                assert!(cause.contains(told), "{cause}");
            }
            other => panic!("{told}: {other:?}"),
        }
        assert_eq!(String::from_utf8_lossy(&kept.stderr()), "", "{told}");
    }
    bench.destroy().await;
}

#[tokio::test]
async fn an_init_error_message_printed_by_a_step_does_not_hide_its_exit_code() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let line =
        "echo before; echo 'ERROR (catatonit:2): failed to exec pid1: No such file' >&2; exit 1";
    let (ran, _) = bench.step(&base, &shell(0, line)).await;
    assert_eq!(ran.exit.code, 1);
    bench.destroy().await;
}

#[tokio::test]
async fn no_step_starts_while_the_gate_is_closed() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let kept: Arc<dyn LogSink> = Arc::new(OutputRecorder::default());
    let (shut, any) = (Gate::new(async { false }, || true), shell(0, "true"));
    let ran = bench.podman.run_step(&bench.run, &base, &any, shut, kept, &bench.stop);
    assert!(matches!(ran.await, Err(ExecError::NotStarted)));
    // A stop before the gate opens has the same effect.
    bench.stop.raise(StopLevel::Kill);
    let kept: Arc<dyn LogSink> = Arc::new(OutputRecorder::default());
    let never = Gate::new(std::future::pending(), || true);
    let ran = bench.podman.run_step(&bench.run, &base, &any, never, kept, &bench.stop);
    assert!(matches!(ran.await, Err(ExecError::NotStarted)));
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_can_close_its_output_and_continue() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let line = "echo last; exec >&- 2>&-; usleep 700000; echo x > /file; exit 5";
    let (ran, kept) = bench.step(&base, &shell(0, line)).await;
    assert_eq!((ran.exit.code, kept.text().as_str()), (5, "last\n"));
    bench.destroy().await;
}

#[tokio::test]
async fn a_missing_workspace_is_named_in_the_error() {
    let Some(bench) = Bench::from_env() else { return };
    let gone = Workspace::Image { id: "0".repeat(64), depth: 3 };
    let error = bench.try_step(&gone, &shell(0, "true")).await.unwrap_err();
    assert!(matches!(&error, ExecError::Image { cause, .. } if cause.contains("gone")), "{error}");
}

#[tokio::test]
async fn limits_are_enforced_or_refused_but_never_ignored() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let mut limited = shell(0, "cat /sys/fs/cgroup/memory.max");
    limited.limits.mem = Some("64M".parse().unwrap());
    let refused = bench.podman.info().await.unwrap().limits_refused;
    match (bench.try_step(&base, &limited).await, refused) {
        (Err(ExecError::Unsupported(why)), Some(reason)) => assert_eq!(why, reason),
        (Err(ExecError::Unsupported(why)), None) => assert!(why.contains("no cgroups"), "{why}"),
        (Ok((ran, kept)), None) => {
            assert_eq!((ran.exit.code, kept.text().as_str()), (0, "67108864\n"));
        }
        other => panic!("{other:?}"),
    }
    bench.destroy().await;
}

#[tokio::test]
async fn the_engine_reports_the_same_id_to_every_client() {
    let Some(bench) = Bench::from_env() else { return };
    let info = bench.podman.info().await.unwrap();
    assert_eq!(info.executor, "podman");
    assert_eq!(info.id.len(), 32);
    assert_eq!(info, bench.another_process().podman.info().await.unwrap());
}
