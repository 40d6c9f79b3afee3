//! Settings of the HTTP API.

/// The HTTP API of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// The address, as `host:port`. `None` switches the API off.
    pub address: Option<String>,
    /// Whether the address was set explicitly. The port of the default address can be in use.
    pub is_named: bool,
    /// Maximum size of the cache of logs, in bytes. 0: no cache.
    pub log_cache_bytes: u64,
}
