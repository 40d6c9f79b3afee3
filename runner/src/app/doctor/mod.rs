//! Checks this host and the services, and says how to fix each problem.
//!
//! | module | duty |
//! |---|---|
//! | `check` | the result of a check |
//! | `engine` | the container engine |
//! | `services` | broker, stream and etcd |
//! | `machine` | programs, users, disks |

mod check;
mod engine;
mod machine;
mod services;

use protocol::pipeline::{Pipeline, Place};
use protocol::quantity::readable;
use protocol::run::NodeMemory;

pub use self::check::{Check, Level};
use super::{Unavailable, this_host};
use crate::config::{self, Config, Mode};
use crate::exec::local;
use crate::rules::quota::{self, MemoryFit};

/// Checks everything that a worker with these settings needs.
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
    checks.push(machine::limits(local_limits_refused()));
    let storage = engine.info.as_ref().and_then(engine::storage_dir);
    checks.extend(machine::disks(config, storage.as_deref()));
    checks
}

/// Why limits of steps on this host would be rejected. `None` if they are enforced.
fn local_limits_refused() -> Option<String> {
    local::limits_refused(local::own_cgroup().as_deref())
}

/// The limits and the memory of this host, as far as pipelines need them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abilities {
    /// Why limits of containers would be rejected. `None` if they are enforced.
    limits_refused: Option<String>,
    /// The same for processes on the host.
    local_limits_refused: Option<String>,
    memory: NodeMemory,
}

/// Determines what this host can do.
///
/// # Errors
/// [`Unavailable`] if the engine does not answer.
pub async fn abilities(engine: &config::Engine) -> Result<Abilities, Unavailable> {
    let seen = engine::examine(engine).await;
    let memory = this_host().memory();
    match seen.info {
        Some(info) => Ok(Abilities {
            limits_refused: engine::limits_refused(&info),
            local_limits_refused: local_limits_refused(),
            memory,
        }),
        None => {
            let found = seen.checks.into_iter().next().map(|check| check.found);
            let found = found.unwrap_or_else(|| "the engine does not answer".into());
            Err(Unavailable::new(&found))
        }
    }
}

impl Abilities {
    /// The demands of a pipeline that this host cannot meet: the field and a sentence for each.
    #[must_use]
    pub fn unmet_demands(&self, pipeline: &Pipeline) -> Vec<(&'static str, String)> {
        let mut lacking = Vec::new();
        if let MemoryFit::Never { asked, total } = quota::check_memory(pipeline, self.memory) {
            let sentence = format!(
                "`quotas.requests.mem` is {}, and this host has {} of memory",
                readable(asked),
                readable(total)
            );
            lacking.push(("quotas.requests.mem", sentence));
        }
        let limits = pipeline.quotas.as_ref().and_then(|quotas| quotas.limits.as_ref());
        if limits.is_some_and(|limits| limits.cpu.is_some() || limits.mem.is_some())
            && let Some(why) = self.no_limits(pipeline)
        {
            let sentence = format!("`quotas.limits` cannot be enforced on this host: {why}");
            lacking.push(("quotas.limits", sentence));
        }
        lacking
    }

    fn no_limits(&self, pipeline: &Pipeline) -> Option<&str> {
        let steps = pipeline.all_steps();
        let mut kinds = steps.filter(|step| !step.is_join()).map(|step| step.executor);
        kinds.find_map(|kind| match kind.capabilities().place {
            Place::Engine => self.limits_refused.as_deref(),
            Place::Host => self.local_limits_refused.as_deref(),
            Place::RemoteHost | Place::Service => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_parts_of_a_pipeline_are_reported_with_their_position() {
        let of = |executor: &str, quotas: &str| {
            let text = format!(
                r#"{{"group":"dev","name":"x","image":"localhost/i","steps":[{{"cmd":"x","executor":"{executor}"}}],"quotas":{quotas}}}"#
            );
            protocol::dialect::parse(None, text.as_bytes()).pipelines.remove(0)
        };
        let pipeline = |quotas| of("podman", quotas);
        let memory = NodeMemory { free: 1 << 30, total: 3 << 29 };
        let able = Abilities { limits_refused: None, local_limits_refused: None, memory };
        let poor = Abilities { limits_refused: Some("no cgroups".into()), ..able.clone() };
        let modest = pipeline(r#"{"requests":{"mem":"1536M"}}"#);
        assert_eq!(poor.unmet_demands(&modest), [], "what is free now may change");
        let greedy = pipeline(r#"{"requests":{"mem":"1000G"},"limits":{"cpu":0.5}}"#);
        let found = poor.unmet_demands(&greedy);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            found[0].1,
            "`quotas.requests.mem` is 1000 GiB, and this host has 1.5 GiB of memory"
        );
        assert!(found[1].1.ends_with("on this host: no cgroups"), "{found:?}");
        assert_eq!(able.unmet_demands(&greedy).len(), 1);
        let limited = of("local", r#"{"limits":{"mem":"1G"}}"#);
        assert_eq!(poor.unmet_demands(&limited), [], "it runs in no container");
        let alone = Abilities { local_limits_refused: Some("no groups".into()), ..able };
        assert_eq!(alone.unmet_demands(&limited).len(), 1);
    }
}
