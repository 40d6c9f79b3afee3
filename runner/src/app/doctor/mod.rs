//! Looks at this machine and at the services, and says what to do about what is not as it should be.
//!
//! | module | duty |
//! |---|---|
//! | `engine` | the container engine, and what its answers mean |
//! | `services` | broker, stream and etcd |
//! | `machine` | programs, users, disks |

mod engine;
mod machine;
mod services;

use serde::Serialize;

use super::Unavailable;
use crate::config::{self, Config, Mode};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, with less than it could.
    Warn,
    /// Something that is needed is not there.
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it went.
    pub level: Level,
    /// What was found, as a sentence.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, found: found.into(), advice: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, level: Level::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, level: Level::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything that a worker with these settings needs.
pub async fn examine(config: &Config) -> Vec<Check> {
    let cluster = async {
        match config.mode {
            Mode::Cluster => Box::pin(services::examine(config)).await,
            Mode::Embedded => Vec::new(),
        }
    };
    let (engine, cluster) = tokio::join!(engine::examine(&config.engine), cluster);
    let mut checks = engine.checks;
    if engine.info.is_none() {
        checks.extend(machine::rootless(&config.engine));
    }
    checks.extend(cluster);
    let storage = engine.info.as_ref().and_then(engine::storage_dir);
    checks.extend(machine::disks(config, storage.as_deref()));
    checks
}

/// Why this host cannot enforce limits of cpu and memory, where it cannot.
///
/// # Errors
/// [`Unavailable`] where the engine does not answer.
pub async fn limits_refused(engine: &config::Engine) -> Result<Option<String>, Unavailable> {
    let seen = engine::examine(engine).await;
    match seen.info {
        Some(info) => Ok(engine::limits_refused(&info)),
        None => {
            let found = seen.checks.into_iter().next().map(|check| check.found);
            Err(Unavailable::new(found.unwrap_or_else(|| "the engine does not answer".into())))
        }
    }
}
