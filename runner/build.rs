//! Embeds the commit in a release build: `BOB_COMMIT` if it is set, for example because there is no
//! repository, else the commit that git reports. A debug build has none, because every commit would
//! cause a rebuild.
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
    // The log of HEAD changes with each commit. A copy without a repository has neither.
    let watched = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    if let (Some(watched), Some(commit)) = (watched, commit) {
        println!("cargo::rerun-if-changed={watched}");
        println!("cargo::rustc-env=BOB_COMMIT={commit}");
    }
}

fn git(words: &[&str]) -> Option<String> {
    let said = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(said.stdout).ok()?;
    said.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
