//! The bob-runner program.
fn main() {}
