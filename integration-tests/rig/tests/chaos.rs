//! Plays a short history with the fault rig. `just chaos` plays long ones.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

use test_support::services::{BROKER, ENGINE, STORE, Services};

#[test]
fn a_short_history_under_the_fault_rig_breaks_no_invariant() {
    // The program starts its own services, but only if the environment asks for such tests.
    let needed: Vec<&str> = [BROKER, STORE, ENGINE].concat();
    let Some(_asked_for) = Services::from_env(&needed) else { return };
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--worker", env!("CARGO_BIN_EXE_bob-runner-under-faults")])
        .args(["--seed", "2", "--runs", "30", "--minutes", "2"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{said}\n{report}", output.status);
}
