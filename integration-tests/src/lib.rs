//! Helpers shared by the tests against real services in `tests/`.
#![expect(clippy::expect_used, clippy::panic, reason = "test helpers may panic")]

pub mod engine;
pub mod prefixed;
pub mod proxy;
pub mod raw;
pub mod services;
pub mod skipped;

// `skipped.rs` cannot contain its tests, because `runner/tests/zz_skipped.rs` includes that file.
#[cfg(test)]
mod tests {
    use super::skipped::summary_of;

    #[test]
    fn skipped_tests_are_counted_once_and_for_each_missing_service() {
        assert_eq!(summary_of(""), "skipped: no test");
        let list = "a::x\tRabbitMQ\na::x\tetcd\nb::x\tetcd\nb::x\tetcd\n";
        let summary = summary_of(list);
        assert!(summary.starts_with("SKIPPED: 2 tests"), "{summary}");
        assert!(summary.contains("Missing: RabbitMQ (1), etcd (2)."), "{summary}");
    }
}
