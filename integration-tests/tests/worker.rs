//! The worker over RabbitMQ and etcd, with scripted steps. Runs the same suite as the embedded
//! adapters.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use integration_tests::prefixed::Prefixed;
use integration_tests::services::{BROKER, STORE, Services, Vhost};
use runner::cluster::{AmqpEvents, AmqpOptions, AmqpQueue, Etcd};
use runner::exec::scripted::Scripted;
use runner::ports::{Executor, NoSecrets, Ports};
use runner::worker::RenderInline;
use runner::worker::suite::{MakePorts, Rig, commands, hard, large, later, marks, runs, takeover};
use runner::{host, transfer};

/// A virtual host per test on the shared broker, and a key prefix in the shared etcd.
async fn rig() -> Option<(Rig, Arc<Vhost>, Services)> {
    let needed: Vec<&str> = BROKER.iter().chain(STORE).copied().collect();
    let services = Services::of_environment(&needed)?;
    let vhost = Arc::new(services.vhost().await);
    let executor: Arc<dyn Executor> = Arc::new(Scripted::default());
    let (of_rig, here) = (services.clone(), Arc::clone(&vhost));
    let prefix = format!("t-{}/", uuid::Uuid::new_v4());
    let make: MakePorts = Arc::new(move |node| {
        let amqp = AmqpOptions { node: node.clone(), ..of_rig.amqp(&here) };
        let (etcd, executor) = (of_rig.etcd(), Arc::clone(&executor));
        let (spill_dir, prefix) = (here.spill.path().to_owned(), prefix.clone());
        Box::pin(async move {
            let http = transfer::Options {
                policy: runner::egress::Policy::unrestricted(),
                spill_dir,
                spill_bytes: 1 << 20,
            };
            Ports {
                queue: Arc::new(AmqpQueue::connect(&amqp).await.unwrap()),
                store: Arc::new(Prefixed::new(
                    Arc::new(Etcd::connect(&etcd).await.unwrap()),
                    prefix,
                )),
                events: Arc::new(AmqpEvents::connect(&amqp).await.unwrap()),
                executor,
                transfer: Arc::new(transfer::Http::new(http).unwrap()),
                host: Arc::new(host::Linux::default()),
                renderer: Arc::new(RenderInline),
                secrets: Arc::new(NoSecrets),
                outputs: None,
            }
        })
    });
    Some((Rig::new(make).await, vhost, services))
}

macro_rules! rows {
    ($($room:ident :: $row:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $row() {
                let Some((rig, _vhost, _services)) = rig().await else { return };
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
    let Some((rig, vhost, services)) = rig().await else { return };
    let options = services.amqp(&vhost);
    let uri = format!(
        "{}/{}",
        options
            .url
            .replace("://", &format!("://{}:{}@", options.user, options.password))
            .trim_end_matches(&format!("/{}", vhost.name)),
        vhost.name
    );
    let connection =
        lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let dead = async || loop {
        let got = channel
            .basic_get("bob.dlq".into(), lapin::options::BasicGetOptions { no_ack: true })
            .await
            .unwrap();
        if let Some(letter) = got {
            return letter.delivery.data;
        }
        tokio::task::yield_now().await;
    };
    commands::what_cannot_be_understood_is_dead_lettered_and_told(rig, dead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_runs_on_two_workers_each_end_once() {
    let Some((rig, _vhost, _services)) = rig().await else { return };
    runs::many_runs_on_two_workers_end_once_each(rig, 200).await;
}
