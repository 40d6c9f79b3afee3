//! What every executor does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use protocol::event::LogStream;
use protocol::id::{Epoch, RunId, StepName};
use protocol::pipeline::{ExecutorKind, Limits, PullPolicy, Shell, Vars};
use tokio::sync::Notify;

use super::{never, soon};
use crate::ports::{
    Checkpoint, ExecError, Executor, Gate, Given, LogSink, Ran, RunScope, Script, Secret,
    StepSecrets, StepSpec, StopLevel, StopSignal, Workspace,
};

/// What a step of the suite does; each executor has words of its own for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Ends with a code.
    Exit(i32),
    /// Writes a line to standard output.
    Print(String),
    /// Writes a line to standard error.
    Complain(String),
    /// Writes a line into the file of that path.
    Put(String, String),
    /// Writes what the file of that path holds to standard output; fails where it is not there.
    Show(String),
    /// Writes the value of a variable, or `unset`, as a line.
    Env(String),
    /// Writes the working directory as a line.
    Dir,
    /// Writes the line `ready`, and runs until SIGTERM.
    Hang,
    /// Writes the line `ready`, and runs until SIGKILL.
    Stubborn,
    /// A program that is not there.
    Nowhere,
}

/// An executor under test. Others may use its engine too.
pub struct ExecutorSubject {
    /// Stands in every run id: unique to this call, letters and digits.
    pub prefix: String,
    /// The executor.
    pub executor: Arc<dyn Executor>,
    /// Its engine as another process sees it; may be the same value.
    pub other: Arc<dyn Executor>,
    /// What the steps of the executor say.
    pub kind: ExecutorKind,
    /// Whether there is a shell where steps run.
    pub has_a_shell: bool,
    /// Whether steps begin with an image, and leave one.
    pub on_images: bool,
    /// A base image that is there.
    pub image: String,
    /// One that nobody has.
    pub missing: String,
    /// What a step is made of that does this.
    pub words: fn(&Act) -> Vec<String>,
}

impl std::fmt::Debug for ExecutorSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecutorSubject").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Asserts the contract of [`Executor`].
pub async fn executor(subject: ExecutorSubject) {
    let subject = &subject;
    Box::pin(commands(subject)).await;
    Box::pin(a_dropped_wait_stops_nothing(subject)).await;
    Box::pin(a_secret_is_there_for_its_step_alone(subject)).await;
    if subject.on_images {
        Box::pin(an_image_that_nobody_has_is_named(subject)).await;
        Box::pin(what_a_step_left_is_there_for_the_next(subject)).await;
        Box::pin(steps_beside_each_other_each_leave_their_own(subject)).await;
        Box::pin(an_owner_of_before_does_no_harm(subject)).await;
        Box::pin(what_was_kept_can_be_taken_up_by_another(subject)).await;
        Box::pin(a_run_is_destroyed_as_often_as_one_likes(subject)).await;
    }
}

/// Asserts what of it holds where steps run commands elsewhere and leave nothing here, so that nobody
/// can list what is left.
pub async fn remote(subject: ExecutorSubject) {
    Box::pin(commands(&subject)).await;
}

async fn commands(subject: &ExecutorSubject) {
    Box::pin(the_engine_has_one_name(subject)).await;
    Box::pin(a_step_writes_and_ends_as_its_command_does(subject)).await;
    Box::pin(what_cannot_be_had_is_named(subject)).await;
    Box::pin(nothing_starts_where_the_gate_stays_shut(subject)).await;
    Box::pin(nothing_of_a_steps_settings_leaks(subject)).await;
    Box::pin(a_step_ends_when_it_is_told_to(subject)).await;
    Box::pin(nothing_starts_for_an_owner_that_may_not(subject)).await;
    Box::pin(a_script_is_run_program_by_program(subject)).await;
}

/// Keeps what a step writes.
#[derive(Debug, Default)]
struct Kept {
    pieces: Mutex<Vec<(LogStream, Bytes)>>,
    more: Notify,
}

#[async_trait]
impl LogSink for Kept {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).push((stream, bytes));
        self.more.notify_one();
    }
}

impl Kept {
    fn text(&self, wanted: LogStream) -> String {
        let pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let of_stream = pieces.iter().filter(|(stream, _)| *stream == wanted);
        let bytes: Vec<u8> = of_stream.flat_map(|(_, bytes)| bytes.to_vec()).collect();
        String::from_utf8(bytes).expect("a step of the suite writes text")
    }

    async fn ready(&self) {
        while !self.text(LogStream::Stdout).starts_with("ready\n") {
            self.more.notified().await;
        }
    }
}

/// A run of a test's own.
struct Run<'a> {
    subject: &'a ExecutorSubject,
    scope: RunScope,
    stop: StopSignal,
}

impl ExecutorSubject {
    fn run(&self, name: &str) -> Run<'_> {
        let run: RunId = format!("r-{}.{name}", self.prefix).parse().expect("a plain prefix");
        let scope = RunScope {
            run,
            cluster: self.prefix.as_str().into(),
            epoch: Epoch(1),
            image: self.image.clone(),
            pull: PullPolicy::Never,
        };
        Run { subject: self, scope, stop: StopSignal::default() }
    }

    fn step(&self, position: usize, act: &Act) -> StepSpec {
        StepSpec {
            name: StepName::position(position),
            position,
            attempt: 1,
            executor: self.kind,
            script: None,
            words: (self.words)(act),
            env: Vars::new(),
            work_dir: None,
            network: Some("none".to_owned()),
            limits: Limits::default(),
            with: serde_json::Map::new(),
            secrets: StepSecrets::default(),
        }
    }
}

impl<'a> Run<'a> {
    async fn prepare(&self) -> Workspace {
        let prepared = self.subject.executor.prepare(&self.scope, &self.stop);
        soon("a first workspace", prepared).await.expect("the base image is there")
    }

    fn start(
        &'a self,
        on: &'a Workspace,
        step: &'a StepSpec,
        open: BoxFuture<'static, bool>,
        kept: &Arc<Kept>,
    ) -> BoxFuture<'a, Result<Ran, ExecError>> {
        let out = Arc::<Kept>::clone(kept);
        let gate = Gate::new(open, || true);
        self.subject.executor.run_step(&self.scope, on, step, gate, out, &self.stop)
    }

    async fn step(&self, on: &Workspace, step: &StepSpec) -> Result<(Ran, Arc<Kept>), ExecError> {
        let kept = Arc::new(Kept::default());
        let ran = self.start(on, step, async { true }.boxed(), &kept);
        soon("the end of a step", ran).await.map(|ran| (ran, kept))
    }

    /// Runs a step that passes; what it left for the next, and what it wrote.
    async fn pass(&self, on: &Workspace, step: &StepSpec) -> (Workspace, String) {
        let (ran, kept) = self.step(on, step).await.expect("the step can be run");
        assert_eq!(ran.exit.code, 0, "{:?}", step.words);
        let executor = &self.subject.executor;
        let left = soon("a checkpoint", executor.checkpoint(&self.scope, ran.left, step)).await;
        (left.expect("what a step left can be kept"), kept.text(LogStream::Stdout))
    }

    /// Runs a step and lets go of what it left; its exit code, and what it wrote.
    async fn run(&self, on: &Workspace, act: &Act) -> (i32, Arc<Kept>) {
        let step = self.subject.step(0, act);
        let (ran, kept) = self.step(on, &step).await.expect("the step can be run");
        self.subject.executor.discard(&self.scope, ran.left).await;
        (ran.exit.code, kept)
    }

    async fn destroy(&self) {
        let destroyed = self.subject.executor.destroy(&self.scope.run);
        soon("the end of a run", destroyed).await.expect("a run can be destroyed");
        assert!(!self.is_left().await, "nothing of a destroyed run is left");
    }

    async fn is_left(&self) -> bool {
        let left = soon("a list of what is left", self.subject.other.leftovers()).await;
        let left = left.expect("what is left can be listed");
        let of_run: Vec<_> = left.iter().filter(|left| left.run == self.scope.run).collect();
        assert!(of_run.len() <= 1, "each run is listed once");
        for left in &of_run {
            assert_eq!(left.cluster.as_deref(), Some(&*self.scope.cluster), "it says whose it is");
        }
        !of_run.is_empty()
    }
}

async fn the_engine_has_one_name(subject: &ExecutorSubject) {
    let here = soon("an answer", subject.executor.info()).await.expect("the engine answers");
    let there = soon("an answer", subject.other.info()).await.expect("the engine answers");
    assert_eq!(here, there, "an engine is the same whoever asks");
    assert!(!here.id.is_empty() && !here.executor.is_empty(), "{here:?}");
}

async fn a_step_writes_and_ends_as_its_command_does(subject: &ExecutorSubject) {
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

async fn what_cannot_be_had_is_named(subject: &ExecutorSubject) {
    let run = subject.run("nowhere");
    let base = run.prepare().await;
    match run.step(&base, &subject.step(0, &Act::Nowhere)).await {
        Err(ExecError::Start { code: 127, .. }) => {}
        other => panic!("a program that is not there cannot be started: {other:?}"),
    }
    run.destroy().await;
}

async fn an_image_that_nobody_has_is_named(subject: &ExecutorSubject) {
    let mut run = subject.run("missing");
    run.scope.image.clone_from(&subject.missing);
    match soon("an answer", subject.executor.prepare(&run.scope, &run.stop)).await {
        Err(ExecError::Image { image, .. }) => assert_eq!(image, subject.missing),
        other => panic!("an image that nobody has cannot be had: {other:?}"),
    }
}

async fn nothing_starts_where_the_gate_stays_shut(subject: &ExecutorSubject) {
    let run = subject.run("gate");
    let base = run.prepare().await;
    let (kept, step) = (Arc::new(Kept::default()), subject.step(0, &Act::Print("ran".into())));
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

async fn a_script_is_run_program_by_program(subject: &ExecutorSubject) {
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
    run.destroy().await;
}

async fn a_secret_is_there_for_its_step_alone(subject: &ExecutorSubject) {
    if !subject.has_a_shell {
        return;
    }
    let run = subject.run("secret");
    let base = run.prepare().await;
    let given = |name: &str, env: Option<&str>, value: &str| Given {
        name: name.to_owned(),
        env: env.map(str::to_owned),
        value: Secret::new(value.as_bytes()),
    };
    let step = |position: usize, program: &str, given: Vec<Given>| StepSpec {
        words: Vec::new(),
        script: Some(Script {
            shell: Shell::Sh,
            programs: vec![program.to_owned()],
            goes_on: false,
        }),
        secrets: StepSecrets { given, forbidden: None },
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
    // Whether the directory itself is still there is the executor's business.
    let (_, text) = run.pass(&left, &step(1, &format!("{looks} || true"), Vec::new())).await;
    assert_eq!(text, "none none\n", "nothing of it is there for the next step");
    run.destroy().await;
}

async fn what_a_step_left_is_there_for_the_next(subject: &ExecutorSubject) {
    let run = subject.run("files");
    let base = run.prepare().await;
    let put = |path: &str, text: &str| Act::Put(path.into(), text.into());
    let (one, _) = run.pass(&base, &subject.step(0, &put("/tmp/a", "first"))).await;
    let (two, _) = run.pass(&one, &subject.step(1, &put("/tmp/b", "second"))).await;
    for (path, text) in [("/tmp/a", "first\n"), ("/tmp/b", "second\n")] {
        let (code, kept) = run.run(&two, &Act::Show(path.into())).await;
        assert_eq!((code, kept.text(LogStream::Stdout).as_str()), (0, text), "{path}");
    }
    // A workspace is a value: what is made on it afterwards changes nothing of it.
    let (other, _) = run.pass(&one, &subject.step(2, &put("/tmp/a", "changed"))).await;
    let (_, kept) = run.run(&one, &Act::Show("/tmp/a".into())).await;
    assert_eq!(kept.text(LogStream::Stdout), "first\n", "a workspace stays as it is");
    let (_, kept) = run.run(&other, &Act::Show("/tmp/a".into())).await;
    assert_eq!(kept.text(LogStream::Stdout), "changed\n", "the newest text holds");
    let (code, _) = run.run(&other, &Act::Show("/tmp/b".into())).await;
    assert_ne!(code, 0, "a workspace has nothing of its neighbour");
    let (code, _) = run.run(&base, &Act::Show("/tmp/a".into())).await;
    assert_ne!(code, 0, "the first workspace stays as it is");
    run.destroy().await;
}

async fn steps_beside_each_other_each_leave_their_own(subject: &ExecutorSubject) {
    let run = subject.run("beside");
    let base = run.prepare().await;
    let put = |text: &str| Act::Put("/tmp/a".into(), text.into());
    let (first, _) = run.pass(&base, &subject.step(0, &put("first"))).await;
    let steps: Vec<StepSpec> =
        (1..4).map(|at| subject.step(at, &put(&format!("of {at}")))).collect();
    let passed = steps.iter().map(|step| run.pass(&first, step));
    let left: Vec<Workspace> =
        futures::future::join_all(passed).await.into_iter().map(|(left, _)| left).collect();
    // A next owner has each of them, and what they began with.
    let later = RunScope { epoch: Epoch(2), ..run.scope.clone() };
    let later = Run { subject, scope: later, stop: StopSignal::default() };
    for (at, kept) in [&first].into_iter().chain(&left).enumerate() {
        let kept = checkpoint(kept.image(), None);
        let adopted = subject.other.adopt(&later.scope, Some(&kept)).await;
        let on = adopted.expect("an image can be taken up").expect("it is there");
        let (code, shown) = later.run(&on, &Act::Show("/tmp/a".into())).await;
        let text = if at == 0 { "first\n".to_owned() } else { format!("of {at}\n") };
        assert_eq!((code, shown.text(LogStream::Stdout)), (0, text));
    }
    later.destroy().await;
}

async fn nothing_of_a_steps_settings_leaks(subject: &ExecutorSubject) {
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

async fn a_step_ends_when_it_is_told_to(subject: &ExecutorSubject) {
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
        let (kept, step) = (Arc::new(Kept::default()), subject.step(0, &act));
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

async fn a_dropped_wait_stops_nothing(subject: &ExecutorSubject) {
    let run = subject.run("dropped");
    let base = run.prepare().await;
    let (kept, step) = (Arc::new(Kept::default()), subject.step(0, &Act::Hang));
    let running = run.start(&base, &step, async { true }.boxed(), &kept);
    let begun = async {
        tokio::select! {
            ran = running => panic!("it ended: {ran:?}"),
            () = kept.ready() => {}
        }
    };
    soon("a start", begun).await;
    assert!(run.is_left().await, "what runs is left, whoever looks");
    run.destroy().await;
}

async fn nothing_starts_for_an_owner_that_may_not(subject: &ExecutorSubject) {
    let run = subject.run("late");
    let base = run.prepare().await;
    let (kept, step) = (Arc::new(Kept::default()), subject.step(0, &Act::Print("x".into())));
    // The attempt is recorded, but the owner has lost the run while the rest was made.
    let gate = Gate::new(async { true }, || false);
    let out = Arc::<Kept>::clone(&kept);
    let ran = subject.executor.run_step(&run.scope, &base, &step, gate, out, &run.stop);
    match soon("an answer", ran).await {
        Err(ExecError::NotStarted) => {}
        other => panic!("its owner may not start it: {other:?}"),
    }
    assert_eq!(kept.text(LogStream::Stdout), "");
    run.destroy().await;
}

async fn an_owner_of_before_does_no_harm(subject: &ExecutorSubject) {
    let before = subject.run("before");
    let scope = RunScope { epoch: Epoch(2), ..before.scope.clone() };
    let run = Run { subject, scope, stop: StopSignal::default() };
    let base = before.prepare().await;
    run.prepare().await;
    let (kept, step) = (Arc::new(Kept::default()), subject.step(0, &Act::Hang));
    let running = run.start(&base, &step, async { true }.boxed(), &kept);
    let harming = async {
        kept.ready().await;
        let adopted = subject.other.adopt(&before.scope, None).await;
        adopted.expect("it finds nothing that is its own");
        match before.step(&base, &step).await {
            Err(ExecError::NotStarted) => {}
            other => panic!("a later owner has begun this step: {other:?}"),
        }
        run.stop.raise(StopLevel::Stop { grace: Duration::from_secs(600) });
    };
    let (ran, ()) = soon("the end of a step", async { tokio::join!(running, harming) }).await;
    assert_eq!(ran.expect("nobody touched it").exit.code, 143);
    run.destroy().await;
}

fn checkpoint(image: Option<&str>, digest: Option<String>) -> Checkpoint {
    Checkpoint { image: image.expect("what was kept is an image").to_owned(), digest }
}

async fn what_was_kept_can_be_taken_up_by_another(subject: &ExecutorSubject) {
    let run = subject.run("adopted");
    let base = run.prepare().await;
    let put = Act::Put("/tmp/a".into(), "kept".into());
    let (left, _) = run.pass(&base, &subject.step(0, &put)).await;
    let (kept, step) = (Arc::new(Kept::default()), subject.step(1, &Act::Hang));
    let running = run.start(&left, &step, async { true }.boxed(), &kept);
    let next = RunScope { epoch: Epoch(2), ..run.scope.clone() };
    let taken = async {
        kept.ready().await;
        let adopted = subject.other.adopt(&next, Some(&checkpoint(left.image(), None))).await;
        // What ran may have ended with that; a first owner ends it in any case.
        run.stop.raise(StopLevel::Kill);
        adopted
    };
    let both = async { tokio::join!(taken, running) };
    let (adopted, _ran) = soon("the end of what the first owner ran", both).await;
    let on = adopted.expect("an image can be taken up").expect("it is there");
    let later = Run { subject, scope: next, stop: StopSignal::default() };
    let (code, shown) = later.run(&on, &Act::Show("/tmp/a".into())).await;
    assert_eq!((code, shown.text(LogStream::Stdout).as_str()), (0, "kept\n"));
    let gone = checkpoint(Some(&"0".repeat(64)), None);
    let missing = subject.other.adopt(&later.scope, Some(&gone)).await;
    assert_eq!(missing.expect("the engine answers"), None, "what is gone is not made up");
    later.destroy().await;
}

async fn a_run_is_destroyed_as_often_as_one_likes(subject: &ExecutorSubject) {
    let run = subject.run("destroyed");
    run.destroy().await;
    let base = run.prepare().await;
    let put = Act::Put("/tmp/a".into(), "x".into());
    let (left, _) = run.pass(&base, &subject.step(0, &put)).await;
    run.pass(&left, &subject.step(1, &Act::Show("/tmp/a".into()))).await;
    // Of a branch, and of a step that nobody took anything from.
    run.pass(&left, &subject.step(2, &Act::Exit(0))).await;
    let (_ran, _) = run.step(&left, &subject.step(3, &Act::Exit(1))).await.expect("a step");
    assert!(run.is_left().await, "what was made is listed");
    let neighbour = subject.run("neighbour");
    let theirs = neighbour.prepare().await;
    let (theirs, _) = neighbour.pass(&theirs, &subject.step(0, &put)).await;
    let destroyed = subject.other.destroy(&run.scope.run);
    soon("the end of a run", destroyed).await.expect("another process can destroy it");
    assert!(!run.is_left().await, "nothing of a destroyed run is left");
    run.destroy().await;
    let (code, _) = neighbour.run(&theirs, &Act::Show("/tmp/a".into())).await;
    assert_eq!(code, 0, "a run's end does nothing to another run");
    neighbour.destroy().await;
}
