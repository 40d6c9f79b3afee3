//! The addresses and secrets that publishers of messages may use through this worker.

use url::Url;

use crate::config::{self, AllowedHost, Config, EngineUrl, Mode};
use crate::egress::{Exception, OwnService, Pattern, Policy, Rules};
use crate::host::{Scope, Scopes};

/// Who can start pipelines on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Publisher {
    /// Only the user of this process, who may do what this process may do.
    User,
    /// Anyone who can publish a message.
    Anyone,
}

/// The ports of RabbitMQ besides the configured one: its plugins and the cluster's internal ports.
const BROKER: [u16; 10] = [4369, 5551, 5552, 5671, 5672, 15671, 15672, 15691, 15692, 25672];
/// The same for etcd.
const ETCD: [u16; 3] = [2379, 2380, 2381];
/// The default ports of a registry.
const REGISTRY: [u16; 2] = [443, 80];

/// The policy for addresses that messages name. `engine`: the URL of the container engine.
pub(super) fn policy(config: &Config, engine: Option<&str>, publisher: Publisher) -> Policy {
    match publisher {
        Publisher::User => Policy::unrestricted(),
        Publisher::Anyone => Policy::restricted(Rules {
            exceptions: config.allowed_addresses.iter().map(exception).collect(),
            own: own_services(config, engine),
        }),
    }
}

fn exception(allowed: &config::AllowedAddress) -> Exception {
    let pattern = match &allowed.host {
        AllowedHost::Name(name) => Pattern::Name(name.clone()),
        AllowedHost::Net(net) => Pattern::Net(*net),
    };
    Exception { pattern, port: allowed.port }
}

fn own_services(config: &Config, engine: Option<&str>) -> Vec<OwnService> {
    let mut own = Vec::new();
    let mut add = |name, host: &str, ports: Vec<u16>| {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        own.push(OwnService { name, host, ports });
    };
    let with = |usual: &[u16], port: u16| usual.iter().copied().chain([port]).collect::<Vec<_>>();
    match config.mode {
        Mode::Embedded => {}
        Mode::Cluster => {
            for url in &config.storage.urls {
                let port = url.port_or_known_default().unwrap_or_default();
                add("etcd", url.host_str().unwrap_or_default(), with(&ETCD, port));
            }
            let stream = config.stream.server.as_ref().map(|server| &server.broker);
            for broker in [Some(&config.queue.broker), stream].into_iter().flatten() {
                add("RabbitMQ", &broker.host, with(&BROKER, broker.port));
            }
        }
    }
    if let Some(url) = engine.and_then(|url| Url::parse(url).ok())
        && let Some(host) = url.host_str()
    {
        add("container engine", host, vec![url.port_or_known_default().unwrap_or_default()]);
    }
    for url in [&config.engine.url, &config.engine.docker_url].into_iter().flatten() {
        match url {
            EngineUrl::Tcp { host, port } => add("container engine", host, vec![*port]),
            EngineUrl::Unix(_) => {}
        }
    }
    if let Some(registry) = &config.worker.checkpoint_registry {
        let host = registry.split('/').next().unwrap_or_default();
        match host.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
            Some((host, port)) => add("checkpoint registry", host, vec![port]),
            None => add("checkpoint registry", host, REGISTRY.to_vec()),
        }
    }
    own
}

/// The scopes that decide who receives which secrets.
pub(super) fn scopes(config: &Config, publisher: Publisher) -> Scopes {
    let scope = |scope: &config::SecretScope| Scope {
        secret: scope.secret.compile_matcher(),
        group: scope.group.compile_matcher(),
        pipeline: scope.pipeline.compile_matcher(),
        host: scope.host.as_ref().map(globset::Glob::compile_matcher),
    };
    match publisher {
        Publisher::User => Scopes::All,
        Publisher::Anyone => Scopes::Only(config.secrets.scopes.iter().map(scope).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, Sources, load};

    fn loaded<const N: usize>(variables: [(&str, &str); N]) -> Config {
        let nowhere = tempfile::tempdir().unwrap();
        let sources = Sources {
            flags: Flags::default(),
            environment: Environment::from(variables),
            working_dir: nowhere.path().to_owned(),
            system_dir: nowhere.path().to_owned(),
        };
        load(&sources).unwrap().config
    }

    #[test]
    fn the_services_in_the_settings_are_the_workers_own() {
        let config = loaded([
            ("BOB_STORAGE_URLS", "http://etcd-1:12379,http://[fd01::2]:2379"),
            ("BOB_QUEUE_URL", "amqp://rabbit:15673"),
            ("BOB_STREAM_URL", "amqp://stream:5672"),
            ("BOB_DOCKER_URL", "tcp://engine:2375"),
            ("BOB_CHECKPOINT_REGISTRY", "registry:5000/bob"),
        ]);
        let own = own_services(&config, Some("http://localhost:8080"));
        let has = |host: &str, port: u16| {
            own.iter().any(|own| own.host == host && own.ports.contains(&port))
        };
        for (host, port) in [
            ("etcd-1", 12379),
            ("etcd-1", 2380),
            ("fd01::2", 2379),
            ("rabbit", 15673),
            ("rabbit", 15672),
            ("stream", 5552),
            ("engine", 2375),
            ("localhost", 8080),
            ("registry", 5000),
        ] {
            assert!(has(host, port), "{host}:{port} is not in {own:?}");
        }
        assert!(own_services(&loaded([("BOB_MODE", "embedded")]), Some("unix:///s")).is_empty());
    }
}
