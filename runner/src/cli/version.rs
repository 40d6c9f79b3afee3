//! The version of the program, and the commit that it was built from.

use std::sync::LazyLock;

use protocol::schema;

/// The commit that this program was built from, if known.
pub(super) const COMMIT: Option<&str> = option_env!("BOB_COMMIT");

/// Version, commit and protocol version on one line.
pub(super) fn title() -> &'static str {
    static TITLE: LazyLock<String> = LazyLock::new(|| {
        let commit = COMMIT.unwrap_or("unknown");
        format!("{}, commit {commit}, protocol {}", env!("CARGO_PKG_VERSION"), schema::VERSION)
    });
    &TITLE
}
