//! The worker over the embedded adapters with scripted steps: every row of the suite.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod callbacks;
mod disk;
mod ends;
mod engine;
mod output;
mod secrets;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol::run::{NodeCpu, NodeMemory, Status};
use protocol::time::Millis;
use runner::embedded::{Embedded, Options};
use runner::exec::scripted::Scripted;
use runner::ports::{Host, NoSecrets, Ports};
use runner::worker::RenderInline;
use runner::worker::suite::{MakePorts, Rig, commands, hard, large, later, marks, runs, takeover};
use runner::{host, transfer};

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

macro_rules! rows {
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

rows! {
    commands::a_start_by_name_or_inline_runs,
    commands::a_start_that_cannot_be_run_is_recorded_as_failed_with_its_cause,
    commands::a_run_id_is_accepted_once,
    commands::the_message_id_names_the_run,
    commands::a_stop_reaches_the_owner_whoever_receives_it,
    commands::a_stop_ends_a_run_that_nobody_owns_and_needs_no_slot,
    commands::a_stop_that_comes_first_is_remembered,
    commands::a_stop_of_what_has_ended_is_ignored,
    commands::a_pause_holds_until_the_newest_unpause,
    commands::a_start_on_the_control_queue_is_passed_on,
    commands::a_workers_own_queue_is_served_or_passed_on,
    commands::a_full_worker_holds_nothing_back,
    commands::a_draining_worker_takes_nothing_new,
    hard::a_start_without_memory_waits_and_loses_nothing,
    hard::a_lost_lease_stops_the_work_at_once,
    hard::a_drive_that_fails_lets_its_run_go,
    hard::what_is_left_of_an_ended_run_is_done_by_whoever_takes_it,
    hard::a_claim_whose_answer_was_lost_is_taken_up,
    hard::a_run_that_is_being_claimed_when_the_drain_begins_is_run,
    hard::a_long_lease_that_is_gone_is_replaced,
    hard::a_store_that_was_restored_is_not_worked_on,
    hard::a_newer_loss_of_a_run_is_not_dropped_with_an_older_one,
    marks::a_lease_of_days_serves_a_limited_number_of_keys,
    marks::the_mark_of_an_open_run_is_renewed,
    marks::a_claim_under_an_earlier_lease_is_not_adopted,
    takeover::a_run_goes_on_with_another_worker_after_its_last_kept_step,
    takeover::a_worker_goes_on_with_its_own_run_after_its_lease_was_lost,
    takeover::a_hand_over_goes_on_at_once_and_is_no_loss,
    takeover::a_pipeline_says_what_becomes_of_a_lost_run,
    takeover::a_run_that_loses_workers_at_one_step_ends_lost,
    takeover::a_run_whose_image_is_gone_starts_from_the_top_and_says_so,
    takeover::a_stop_is_obeyed_while_an_image_is_fetched,
    takeover::an_end_that_was_decided_is_the_end,
    takeover::an_orphan_gets_the_slot_of_a_worker_that_has_but_one,
    takeover::what_is_left_of_a_run_is_swept_in_time,
    takeover::a_new_run_goes_on_where_an_ended_one_has_come_to,
    takeover::a_refused_start_is_never_run,
    large::results_that_fill_the_record_do_not_keep_a_run_from_its_end,
    large::a_large_definition_is_written_once_however_many_steps_there_are,
    large::an_ending_that_the_store_refuses_is_cut_until_it_fits,
    later::a_record_of_an_older_version_is_taken_over,
    later::fields_of_later_versions_are_kept_when_a_record_is_rewritten,
    later::a_definition_with_unknown_keys_is_left_to_a_worker_that_knows_them,
    later::a_stop_of_a_run_whose_record_cannot_be_read_is_recorded,
    runs::events_come_in_order_and_without_a_gap,
    runs::the_record_goes_through_every_status,
    runs::a_failing_step_ends_the_run,
    runs::a_step_and_a_run_time_out,
    runs::a_failed_step_is_tried_again,
    runs::a_run_keeps_the_definition_and_variables_of_its_start,
}

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
