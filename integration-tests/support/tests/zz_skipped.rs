//! Prints how many tests this `cargo test` has skipped, and which services they miss. Cargo runs
//! this program last, because it sorts packages and their programs by name. It contains no tests.
#![expect(clippy::expect_used, reason = "a test may panic")]

use std::io::Write as _;

fn main() {
    // Programs that list tests expect none here.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let summary = test_support::skipped::summary();
    writeln!(std::io::stdout(), "\n{summary}\n").expect("the summary is printed");
}
