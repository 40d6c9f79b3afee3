//! Conformance tests for executors whose steps run a command, on any host.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use protocol::event::LogStream;
use protocol::pipeline::{Shell, Vars};

use super::subject::{Act, ExecutorSubject, RecordedOutput};
use crate::conformance::{never, soon};
use runner::ports::{
    ExecError, Gate, Script, Secret, StepSecret, StepSecrets, StepSpec, StopLevel,
};

pub(super) async fn the_engine_has_one_name(subject: &ExecutorSubject) {
    let here = soon("an answer", subject.executor.info()).await.expect("the engine answers");
    let there = soon("an answer", subject.other.info()).await.expect("the engine answers");
    assert_eq!(here, there, "an engine has the same id for every client");
    assert!(!here.id.is_empty() && !here.executor.is_empty(), "{here:?}");
}

pub(super) async fn a_step_writes_and_ends_as_its_command_does(subject: &ExecutorSubject) {
    let run = subject.run("ends");
    let base = run.prepare().await;
    for code in [0, 1, 7, 255] {
        let (ended, kept) = run.run(&base, &Act::Exit(code)).await;
        assert_eq!(ended, code, "an exit code is the command's own");
        assert_eq!(kept.text(LogStream::Stdout), "", "a silent step writes nothing");
    }
    let (_, kept) = run.run(&base, &Act::Print("  one  two".into())).await;
    assert_eq!(kept.text(LogStream::Stdout), "  one  two\n", "a line comes as it was written");
    assert_eq!(kept.text(LogStream::Stderr), "", "the streams are apart");
    let (_, kept) = run.run(&base, &Act::Complain("no".into())).await;
    assert_eq!(kept.text(LogStream::Stderr), "no\n", "a line comes as it was written");
    assert_eq!(kept.text(LogStream::Stdout), "", "the streams are apart");
    run.destroy().await;
}

pub(super) async fn what_cannot_be_had_is_named(subject: &ExecutorSubject) {
    let run = subject.run("nowhere");
    let base = run.prepare().await;
    match run.step(&base, &subject.step(0, &Act::Nowhere)).await {
        Err(ExecError::Start { code: 127, .. }) => {}
        other => panic!("a program that is not there cannot be started: {other:?}"),
    }
    run.destroy().await;
}

pub(super) async fn no_step_starts_while_the_gate_is_closed(subject: &ExecutorSubject) {
    let run = subject.run("gate");
    let base = run.prepare().await;
    let (kept, step) =
        (Arc::new(RecordedOutput::default()), subject.step(0, &Act::Print("ran".into())));
    match soon("an answer", run.start(&base, &step, async { false }.boxed(), &kept)).await {
        Err(ExecError::NotStarted) => {}
        other => panic!("the gate said no: {other:?}"),
    }
    let shut = futures::future::pending().boxed();
    never("a start before the gate opens", run.start(&base, &step, shut, &kept)).await;
    run.stop.raise(StopLevel::Stop { grace: Duration::from_secs(600) });
    let shut = futures::future::pending().boxed();
    match soon("an answer", run.start(&base, &step, shut, &kept)).await {
        Err(ExecError::NotStarted) => {}
        other => panic!("it was stopped before the gate opened: {other:?}"),
    }
    assert_eq!(kept.text(LogStream::Stdout), "", "nothing ran");
    run.destroy().await;
}

pub(super) async fn nothing_starts_for_an_owner_that_may_not(subject: &ExecutorSubject) {
    let run = subject.run("late");
    let base = run.prepare().await;
    let (kept, step) =
        (Arc::new(RecordedOutput::default()), subject.step(0, &Act::Print("x".into())));
    // The attempt is recorded, but the owner lost the run during the preparation.
    let gate = Gate::new(async { true }, || false);
    let out = Arc::<RecordedOutput>::clone(&kept);
    let ran = subject.executor.run_step(&run.scope, &base, &step, gate, out, &run.stop);
    match soon("an answer", ran).await {
        Err(ExecError::NotStarted) => {}
        other => panic!("its owner must not start it: {other:?}"),
    }
    assert_eq!(kept.text(LogStream::Stdout), "");
    run.destroy().await;
}

pub(super) async fn a_script_is_run_program_by_program(subject: &ExecutorSubject) {
    if !subject.has_a_shell {
        return;
    }
    let run = subject.run("script");
    let base = run.prepare().await;
    let step = |programs: &[&str], goes_on: bool| StepSpec {
        words: Vec::new(),
        script: Some(Script {
            shell: Shell::Sh,
            programs: programs.iter().map(|&program| program.to_owned()).collect(),
            goes_on,
        }),
        ..subject.step(0, &Act::Exit(0))
    };
    let shared = step(&["word=hi; say() { echo \"$1\"; }; cd /tmp", "say $word; pwd"], false);
    let (ran, kept) = run.step(&base, &shared).await.expect("the step can be run");
    let text = kept.text(LogStream::Stdout);
    assert_eq!((ran.exit.code, text.lines().next()), (0, Some("hi")), "they share what they know");
    assert_ne!(text.lines().nth(1), Some("/tmp"), "each begins in the directory of the step");
    let fails = ["echo one; false", "echo two; (exit 3)", "echo three"];
    for (goes_on, code, lines) in [(false, 1, "one\n"), (true, 3, "one\ntwo\nthree\n")] {
        let (ran, kept) = run.step(&base, &step(&fails, goes_on)).await.expect("a step");
        assert_eq!((ran.exit.code, kept.text(LogStream::Stdout).as_str()), (code, lines));
    }
    // Longer than the limit of a command line, alone and together with another program.
    let long = format!("word=long\n{}", "# a comment that takes its place\n".repeat(10_000));
    for programs in [&[long.clone() + "echo $word"][..], &[long, "echo $word".to_owned()]] {
        let programs: Vec<&str> = programs.iter().map(String::as_str).collect();
        let step = step(&programs, false);
        let (ran, kept) = run.step(&base, &step).await.expect("the step can be run");
        let text = kept.text(LogStream::Stdout);
        assert_eq!((ran.exit.code, text.as_str()), (0, "long\n"), "it runs like a short one");
    }
    run.destroy().await;
}

pub(super) async fn a_secret_is_there_for_its_step_alone(subject: &ExecutorSubject) {
    if !subject.has_a_shell {
        return;
    }
    let run = subject.run("secret");
    let base = run.prepare().await;
    let given = |name: &str, env: Option<&str>, value: &str| StepSecret {
        name: name.to_owned(),
        env: env.map(str::to_owned),
        value: Secret::new(value.as_bytes()),
    };
    let step = |position: usize, program: &str, given: Vec<StepSecret>| StepSpec {
        words: Vec::new(),
        script: Some(Script {
            shell: Shell::Sh,
            programs: vec![program.to_owned()],
            goes_on: false,
        }),
        secrets: StepSecrets { granted: given, forbidden: None },
        ..subject.step(position, &Act::Exit(0))
    };
    let secrets = vec![
        given("a file", None, "first \n\n"),
        given("variable", Some("TOKEN"), "it's \"second\"\n"),
    ];
    let shows = "echo \"$BOB_SECRETS\"; cat \"$BOB_SECRETS/a file\"; echo \"$TOKEN.\"; \
                 cat \"$BOB_SECRETS/variable\"; ls -l \"$BOB_SECRETS\" | grep -c '^-r--------'";
    let (left, text) = run.pass(&base, &step(0, shows, secrets)).await;
    let (dir, shown) = text.split_once('\n').expect("a line with the directory");
    let value = "it's \"second\"\n";
    assert_eq!(shown, format!("first \n\n{value}.\n{value}2\n"), "as files, and one as a variable");
    let looks =
        format!("echo \"${{TOKEN-none}} ${{BOB_SECRETS-none}}\"; ls -A \"{dir}\" 2>/dev/null");
    // Whether the directory itself still exists is up to the executor.
    let (_, text) = run.pass(&left, &step(1, &format!("{looks} || true"), Vec::new())).await;
    assert_eq!(text, "none none\n", "nothing of it is there for the next step");
    run.destroy().await;
}

pub(super) async fn nothing_of_a_steps_settings_leaks(subject: &ExecutorSubject) {
    let run = subject.run("leaks");
    let base = run.prepare().await;
    let (_, kept) = run.run(&base, &Act::Dir).await;
    let usual = kept.text(LogStream::Stdout);
    let said = StepSpec {
        env: Vars::from([("SECRET".into(), "s3".into())]),
        work_dir: Some("/tmp".into()),
        ..subject.step(0, &Act::Env("SECRET".into()))
    };
    let (left, text) = run.pass(&base, &said).await;
    assert_eq!(text, "s3\n", "a step has the variables that it is given");
    let there = StepSpec { words: (subject.words)(&Act::Dir), position: 1, ..said };
    let (left, text) = run.pass(&left, &there).await;
    assert_eq!(text, "/tmp\n", "a step is in the directory that it is given");
    let (left, text) = run.pass(&left, &subject.step(2, &Act::Env("SECRET".into()))).await;
    assert_eq!(text, "unset\n", "a variable is its step's alone");
    let (_, text) = run.pass(&left, &subject.step(3, &Act::Dir)).await;
    assert_eq!(text, usual, "a working directory is its step's alone");
    run.destroy().await;
}

pub(super) async fn a_variable_comes_as_it_was_given(subject: &ExecutorSubject) {
    let run = subject.run("variables");
    let base = run.prepare().await;
    for value in ["", "two  words ", "it's \"odd\" $HOME `x` *", "ä€", "of\ntwo lines"] {
        let env = Vars::from([("NAME".into(), value.into())]);
        let step = StepSpec { env, ..subject.step(0, &Act::Env("NAME".into())) };
        let (ran, kept) = run.step(&base, &step).await.expect("the step can be run");
        assert_eq!((ran.exit.code, kept.text(LogStream::Stdout)), (0, format!("{value}\n")));
        subject.executor.discard(&run.scope, ran.workspace).await;
    }
    run.destroy().await;
}

pub(super) async fn a_step_ends_when_it_is_told_to(subject: &ExecutorSubject) {
    let long = StopLevel::Stop { grace: Duration::from_secs(600) };
    let short = StopLevel::Stop { grace: Duration::from_millis(100) };
    for (at, (act, level, code)) in [
        (Act::Hang, long, 143),
        (Act::Hang, StopLevel::Kill, 137),
        (Act::Stubborn, short, 137),
        (Act::Stubborn, StopLevel::Kill, 137),
    ]
    .into_iter()
    .enumerate()
    {
        let run = subject.run(&format!("stop{at}"));
        let base = run.prepare().await;
        let (kept, step) = (Arc::new(RecordedOutput::default()), subject.step(0, &act));
        let running = run.start(&base, &step, async { true }.boxed(), &kept);
        let stopping = async {
            kept.ready().await;
            run.stop.raise(level);
        };
        let (ran, ()) = soon("a stop", async { tokio::join!(running, stopping) }).await;
        let ran = ran.expect("a stopped step still says how it ended");
        assert_eq!(ran.exit.code, code, "{act:?} at {level:?}");
        run.destroy().await;
    }
}

pub(super) async fn a_dropped_wait_stops_nothing(subject: &ExecutorSubject) {
    let run = subject.run("dropped");
    let base = run.prepare().await;
    let (kept, step) = (Arc::new(RecordedOutput::default()), subject.step(0, &Act::Hang));
    let running = run.start(&base, &step, async { true }.boxed(), &kept);
    let begun = async {
        tokio::select! {
            ran = running => panic!("it ended: {ran:?}"),
            () = kept.ready() => {}
        }
    };
    soon("a start", begun).await;
    assert!(run.is_left().await, "a running step is a leftover for every client");
    run.destroy().await;
}
