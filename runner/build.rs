//! Sets `BOB_COMMIT`, the commit that the program reports, in a release build inside a repository.
//!
//! A value from the environment takes precedence, for example for a build from an archive. A debug
//! build does not ask git, because every commit would then cause a rebuild.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "cargo reads the output of a build script"
)]

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=BOB_COMMIT");
    let is_release = std::env::var_os("PROFILE").is_some_and(|profile| profile == "release");
    if !is_release || std::env::var_os("BOB_COMMIT").is_some() {
        return;
    }
    // The log of HEAD grows with each commit, unlike HEAD itself.
    let head_log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    // Outside a repository, both are `None`.
    if let (Some(head_log), Some(commit)) = (head_log, commit) {
        println!("cargo::rerun-if-changed={head_log}");
        println!("cargo::rustc-env=BOB_COMMIT={commit}");
    }
}

/// The output of a git command. `None` if it fails or prints nothing.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
