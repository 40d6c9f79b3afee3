//! Steps that must not run twice.

use super::*;

/// Two workers, and steps that must not run twice.
const ONCE: Protocol = Protocol { once: true, ..TWO };

#[test]
fn a_run_once_step_finishes_during_a_hand_over() {
    holds(Protocol {
        faults: Faults { drains: 2, unanswered: 1, crashes: 1, ..NO_FAULTS },
        comes_across: &[sights::HANDED_OVER, sights::ENDED_IN_DOUBT, sights::DRAINED_IN_DOUBT],
        ..ONCE
    });
}

#[test]
fn a_run_once_step_starts_once_whichever_worker_is_lost() {
    holds(Protocol {
        faults: Faults { crashes: 1, pauses: 1, drains: 1, ..NO_FAULTS },
        comes_across: &[sights::WOKEN_LATE, sights::ENDED_IN_DOUBT],
        ..ONCE
    });
}

#[test]
fn a_hand_over_that_interrupts_a_call_repeats_it() {
    let faults = Faults { drains: 1, ..NO_FAULTS };
    let model = Protocol { flaw: LeftOutRule::HandsOverInDoubt, faults, ..ONCE };
    breaks(model, properties::CALLED_ONCE);
}

#[test]
fn an_owner_that_ignores_a_call_in_doubt_repeats_it() {
    let faults = Faults { crashes: 1, ..NO_FAULTS };
    let model = Protocol { flaw: LeftOutRule::RepeatsInDoubt, faults, ..ONCE };
    breaks(model, properties::CALLED_ONCE);
}
