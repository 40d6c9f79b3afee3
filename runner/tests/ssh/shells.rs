//! Hosts with another `sh`. The stand-in for `ssh` runs the command locally, as a host would.

use std::os::unix::fs::symlink;

use super::*;
use test_support::skipped::{Need, skip};

/// A host on which `sh` is the named program, with or without `setsid`.
struct Host(tempfile::TempDir);

impl Host {
    /// Creates a host. `None` if this machine does not have the shell.
    fn new(shell: &str, has_setsid: bool) -> Option<Self> {
        let found = |name: &str| {
            let mut paths = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name)).into_iter();
            paths.find(|path| path.exists())
        };
        let Some(shell) = found(shell) else {
            skip(&[shell], Need::Optional);
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let link = |name: &str, to: PathBuf| symlink(to, dir.path().join(name)).unwrap();
        link("sh", shell);
        link("sleep", found("sleep").unwrap());
        if has_setsid {
            link("setsid", found("setsid").unwrap());
        }
        let script = "#!/bin/sh\nfor last; do :; done\nexec sh -c \"$last\"\n";
        let program = dir.path().join("ssh");
        // Another process writes the program: a file open for writing cannot be executed, and
        // children of concurrent tests would inherit the descriptor.
        let mut write = std::process::Command::new("/bin/sh");
        write.args(["-c", "printf %s \"$1\" >\"$0\" && chmod +x \"$0\""]).arg(&program).arg(script);
        assert!(write.status().unwrap().success());
        Some(Self(dir))
    }

    /// Runs a step and stops it after its first line.
    async fn run(&self, step: &StepSpec) -> (Result<StepOutcome, ExecError>, String) {
        let inherited = vec![("PATH".into(), self.0.path().into())];
        let ssh = Ssh::new(Options {
            program: self.0.path().join("ssh").into(),
            inherited,
            policy: Policy::unrestricted(),
            named: NamedFiles::any(),
        });
        let (kept, stop, scope) =
            (Arc::new(OutputRecorder::default()), StopSignal::default(), scope());
        let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
        let running = ssh.run_step(&scope, step, Gate::open(), out, &stop);
        let stopping = async {
            kept.lines(1).await;
            stop.raise(StopLevel::Stop { grace: Duration::from_secs(600) });
            std::future::pending().await
        };
        let ran = async {
            tokio::select! {
                ran = running => ran,
                () = stopping => unreachable!("it waits for the step"),
            }
        };
        let ran = soon("the end of a step", ran).await;
        (ran, kept.text())
    }
}

fn with() -> Map<String, Value> {
    json!({ "host": "there" }).as_object().unwrap().clone()
}

#[tokio::test]
async fn a_step_behaves_the_same_with_every_login_shell() {
    for (shell, has_setsid) in [("dash", true), ("bash", true), ("bash", false), ("busybox", true)]
    {
        let Some(host) = Host::new(shell, has_setsid) else { continue };
        let value = "it's\n\"$(x)\" `x` \\n Á 日本 \u{1}\u{7f}";
        let env = Vars::from([("VALUE".into(), value.into())]);
        let program = "trap '' TERM; printf %s \"$VALUE\"; kill -9 $$";
        let (ran, text) = host.run(&StepSpec { env, ..step(with(), program) }).await;
        assert_eq!((ran.unwrap().exit.code, text.as_str()), (137, value), "{shell} {has_setsid}");
        let program = "sleep 1000 & echo $!; sleep 1000; :";
        let (ran, text) = host.run(&step(with(), program)).await;
        assert_eq!(ran.unwrap().exit.code, 143, "{shell} {has_setsid}");
        all_gone(&[text.trim().parse().unwrap()]).await;
    }
}

#[tokio::test]
async fn a_host_that_cannot_stop_a_step_does_not_start_it() {
    let Some(host) = Host::new("dash", false) else { return };
    match host.run(&step(with(), "echo ran")).await {
        (Err(ExecError::Start { cause, code: 126, .. }), text) => {
            assert!(cause.contains("no `setsid`") && text.is_empty(), "{cause} {text}");
        }
        other => panic!("a stop would not reach all of it: {other:?}"),
    }
}
