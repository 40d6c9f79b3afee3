//! Resource limits for the processes of a step on the worker's host.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quantity::{Memory, Span};

/// Limits for each process of a step, set with `setrlimit`. They are written as `limits` in the
/// `with` of a step of the executor `local` or `custom`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProcessLimits {
    /// Number of open files, pipes and sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// Number of processes and threads. The kernel counts all that the worker's user has on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Size of each file that a process writes. SIGXFSZ ends a process that exceeds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_size: Option<Memory>,
    /// Size of the address space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// CPU time, in whole seconds. SIGXCPU ends a process that exceeds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_time: Option<Span>,
    /// Size of a core dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_size: Option<Memory>,
    /// Stack size of the first thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<Memory>,
}

impl ProcessLimits {
    /// The key of the limits in `with`.
    pub const KEY: &str = "limits";

    /// The keys that `limits` accepts.
    pub const KEYS: [&str; 7] =
        ["open-files", "processes", "file-size", "memory", "cpu-time", "core-size", "stack"];

    /// Reads the limits from a step's `with`. A limit that is absent is not set.
    ///
    /// # Errors
    /// If `limits` is malformed. The dialects reject such a `with`, so it can only come from elsewhere.
    pub fn from_with(with: &Map<String, Value>) -> Result<Self, serde_json::Error> {
        with.get(Self::KEY).map_or_else(|| Ok(Self::default()), Self::deserialize)
    }

    /// Returns the limit that a command with this exit code has probably exceeded: the key of the
    /// limit, and the signal that ended the command. A shell reports signal N as exit code 128 + N.
    #[must_use]
    pub fn exceeded_limit(&self, code: i32) -> Option<(&'static str, &'static str)> {
        match code {
            152 => self.cpu_time.map(|_| ("cpu-time", "SIGXCPU")),
            153 => self.file_size.map(|_| ("file-size", "SIGXFSZ")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(limits: Value) -> Result<ProcessLimits, serde_json::Error> {
        ProcessLimits::from_with(&Map::from_iter([("limits".to_owned(), limits)]))
    }

    #[test]
    fn limits_round_trip_through_json() {
        let all = serde_json::json!({
            "open-files": 64, "processes": 10, "file-size": "1Mi", "memory": "2Gi",
            "cpu-time": "1m", "core-size": "0Ki", "stack": "8Mi",
        });
        let limits = parse(all.clone()).unwrap();
        assert_eq!(serde_json::to_value(&limits).unwrap(), all);
        let keys: Vec<&str> = all.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ProcessLimits::KEYS);
        assert_eq!(ProcessLimits::from_with(&Map::new()).unwrap(), ProcessLimits::default());
        assert!(parse(serde_json::json!({"open_file": 1})).is_err());
    }

    #[test]
    fn an_exit_code_indicates_a_limit_only_if_one_is_set() {
        let limits = parse(serde_json::json!({"cpu-time": "1s"})).unwrap();
        assert_eq!(limits.exceeded_limit(152), Some(("cpu-time", "SIGXCPU")));
        assert_eq!((limits.exceeded_limit(153), limits.exceeded_limit(137)), (None, None));
    }
}
