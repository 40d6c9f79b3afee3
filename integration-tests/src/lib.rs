//! Tests against real services live in `tests/`.
