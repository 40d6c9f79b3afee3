//! Conformance tests for the `Executor` port.
//!
//! Each row is a function named after the behavior it asserts. It runs for every executor that has
//! the feature. For the others, a row asserts that the feature is rejected.

mod calls;
mod commands;
mod files;
mod host;
mod images;
mod subject;

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

pub use self::calls::CallSubject;
use self::calls::*;
use self::commands::*;
use self::files::*;
use self::host::*;
use self::images::*;
pub use self::subject::{Act, ExecutorSubject};

/// Asserts the contract of [`Executor`](runner::ports::Executor).
///
/// Timeouts are not part of it: the worker enforces them, and the executor receives an ordinary
/// stop with its grace (`rules::run`).
pub async fn executor(subject: ExecutorSubject) {
    let it = &subject;
    commands(it).await;
    row(it, a_dropped_wait_stops_nothing(it)).await;
    row(it, a_secret_is_there_for_its_step_alone(it)).await;
    if it.has_a_shell {
        row(it, an_artifact_is_what_the_step_has_made(it)).await;
    } else {
        row(it, an_artifact_that_cannot_be_had_is_refused(it)).await;
    }
    if it.on_images {
        row(it, an_image_that_nobody_has_is_named(it)).await;
        row(it, what_a_step_left_is_there_for_the_next(it)).await;
        row(it, steps_beside_each_other_each_leave_their_own(it)).await;
        row(it, a_resource_is_there_for_the_next_step(it)).await;
        row(it, a_resource_that_breaks_off_is_not_mounted(it)).await;
        row(it, an_owner_of_before_does_no_harm(it)).await;
        row(it, what_was_kept_can_be_taken_up_by_another(it)).await;
        row(it, what_was_kept_outlives_what_steps_ran_in(it)).await;
        row(it, a_run_is_destroyed_as_often_as_one_likes(it)).await;
    } else {
        row(it, a_resource_that_cannot_be_mounted_is_refused(it)).await;
        row(it, nothing_is_kept_for_a_next_owner(it)).await;
        row(it, the_end_of_a_run_does_nothing_to_another(it)).await;
    }
}

/// Asserts the subset of the contract for steps that run commands on another host. They leave
/// nothing on this one for `leftovers` to list.
pub async fn remote(subject: ExecutorSubject) {
    let it = &subject;
    commands(it).await;
    row(it, a_secret_that_could_not_be_kept_is_refused(it)).await;
    elsewhere(it).await;
}

/// Asserts the subset of the contract for steps that are calls.
pub async fn call(subject: CallSubject) {
    let (it, of) = (&subject, &subject.of);
    row(of, the_engine_has_one_name(of)).await;
    row(of, a_call_ends_as_the_service_says(it)).await;
    row(of, nothing_is_sent_by_a_step_that_may_not_start(it)).await;
    row(of, a_call_ends_when_it_is_told_to(it)).await;
    row(of, a_key_of_an_account_is_never_shown(it)).await;
    row(of, the_environment_of_a_call_is_not_sent(it)).await;
    row(of, what_a_call_cannot_do_is_refused_before_anything_is_sent(it)).await;
    elsewhere(of).await;
}

async fn commands(it: &ExecutorSubject) {
    row(it, the_engine_has_one_name(it)).await;
    row(it, a_step_writes_and_ends_as_its_command_does(it)).await;
    row(it, what_cannot_be_had_is_named(it)).await;
    row(it, no_step_starts_while_the_gate_is_closed(it)).await;
    row(it, nothing_of_a_steps_settings_leaks(it)).await;
    row(it, a_variable_comes_as_it_was_given(it)).await;
    row(it, a_step_ends_when_it_is_told_to(it)).await;
    row(it, nothing_starts_for_an_owner_that_may_not(it)).await;
    row(it, a_script_is_run_program_by_program(it)).await;
}

/// Asserts that steps elsewhere reject resources and artifacts, and have no checkpoints.
async fn elsewhere(it: &ExecutorSubject) {
    row(it, a_resource_that_cannot_be_mounted_is_refused(it)).await;
    row(it, an_artifact_that_cannot_be_had_is_refused(it)).await;
    row(it, nothing_is_kept_for_a_next_owner(it)).await;
}

/// Asserts one row. If it fails, the panic message names the row and the executor.
fn row<'a, F: Future<Output = ()> + 'a>(
    subject: &'a ExecutorSubject,
    row: F,
) -> impl Future<Output = ()> + 'a {
    let row = Box::pin(row);
    async move {
        let Err(panic) = AssertUnwindSafe(row).catch_unwind().await else { return };
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        // The type name of an async function's future contains the function's name.
        let path = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
        let sentence = path.rsplit("::").next().unwrap_or(path).replace('_', " ");
        panic!("executor {}: {sentence}: {said}", subject.kind.as_str());
    }
}
