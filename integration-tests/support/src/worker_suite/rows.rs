//! The rows of the suite.

/// Passes every row to a macro that makes a test of it. The tests over the embedded adapters and
/// over RabbitMQ and etcd use the same list.
#[macro_export]
macro_rules! for_each_row {
    ($make_tests:ident) => {
        $make_tests! {
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
            hard::a_run_with_an_epoch_above_the_revision_is_not_claimed,
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
            rerun::a_new_run_goes_on_where_an_ended_one_has_come_to,
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
    };
}
