//! The worker over the embedded adapters, with scripted steps. Runs every row of the suite.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod callbacks;
mod disk;
mod ends;
mod engine;
mod output;
mod retention;
mod secrets;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol::run::{NodeCpu, NodeMemory, Status};
use protocol::time::Millis;
use runner::embedded::{Embedded, Options};
use runner::ports::{Host, NoSecrets, Ports};
use runner::worker::RenderInline;
use runner::{host, transfer};
use test_support::scripted::Scripted;
use test_support::worker_suite::{
    MakePorts, Rig, admission, commands, hard, large, later, marks, rerun, runs, takeover,
};

async fn rig() -> (Rig, Embedded) {
    rig_on(Arc::new(Scripted::default()), Arc::new(host::Linux::default())).await
}

/// A rig whose workers share an engine and a host.
async fn rig_on(executor: Arc<Scripted>, host: Arc<dyn Host>) -> (Rig, Embedded) {
    let options =
        Options { dir: None, event_retention: Duration::from_secs(3600), host: Arc::clone(&host) };
    let embedded = Embedded::open(options).await.unwrap();
    let shared = embedded.clone();
    let make: MakePorts = Arc::new(move |node| {
        let spill = std::env::temp_dir();
        let ports = Ports {
            queue: shared.queue(node),
            store: shared.store(),
            events: shared.events(),
            executor: Arc::clone(&executor) as _,
            transfer: Arc::new(
                transfer::Http::new(transfer::Options {
                    policy: runner::egress::Policy::unrestricted(),
                    spill_dir: spill,
                    spill_bytes: 1 << 20,
                })
                .unwrap(),
            ),
            host: Arc::clone(&host),
            renderer: Arc::new(RenderInline),
            secrets: Arc::new(NoSecrets),
            outputs: None,
        };
        Box::pin(async move { ports })
    });
    (Rig::new(make).await, embedded)
}

macro_rules! make_tests {
    ($($room:ident :: $row:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $row() {
                let (rig, _embedded) = rig().await;
                $room::$row(rig).await;
            }
        )*
    };
}

test_support::for_each_row!(make_tests);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_are_dead_lettered_with_an_event() {
    let (rig, embedded) = rig().await;
    let dead = async || loop {
        if let Some(letter) = embedded.dead_letters().await.unwrap().first() {
            assert!(embedded.remove_dead_letter(letter.id).await.unwrap());
            return letter.message.body.clone();
        }
        tokio::task::yield_now().await;
    };
    commands::what_cannot_be_understood_is_dead_lettered_and_told(rig, dead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_runs_on_two_workers_each_end_once() {
    let (rig, _embedded) = rig().await;
    runs::many_runs_on_two_workers_end_once_each(rig, 200).await;
}

/// This host, whose boot clock can jump by an hour while the store's does not.
#[derive(Default)]
struct Sleepy {
    machine: host::Linux,
    slept: AtomicBool,
}

impl Host for Sleepy {
    fn now(&self) -> Millis {
        self.machine.now()
    }

    fn since_boot(&self) -> Duration {
        let hours = u64::from(self.slept.load(Ordering::SeqCst));
        self.machine.since_boot() + Duration::from_secs(3600 * hours)
    }

    fn memory(&self) -> NodeMemory {
        self.machine.memory()
    }

    fn cpu(&self) -> NodeCpu {
        self.machine.cpu()
    }

    fn name(&self) -> String {
        self.machine.name()
    }
}

/// A worker that was frozen sees its killed steps before it notices the loss of its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_end_while_the_lease_is_uncertain_is_not_a_result() {
    let host = Arc::new(Sleepy::default());
    let (mut rig, _embedded) =
        rig_on(Arc::new(Scripted::default()), Arc::<Sleepy>::clone(&host)).await;
    rig.worker(1).await;
    let (run, dir) = (rig.run("frozen"), tempfile::tempdir().unwrap());
    let sign = dir.path().join("sign");
    let steps = [format!("wait-for {}", sign.display())];
    rig.start(&run, &rig.pipeline("frozen", &steps.each_ref().map(String::as_str))).await;
    rig.record(&run, |record| record.status == Status::Running && record.steps.len() == 1).await;
    host.slept.store(true, Ordering::SeqCst);
    std::fs::write(&sign, "").unwrap();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt, record.losses), (Status::Passed, 2, 0));
    rig.end().await;
}
