//! Checks the configured broker, stream and etcd.

use std::time::{Duration, Instant};

use protocol::names;

use super::check::Check;
use crate::app::{
    ServiceFault, Unavailable, amqp_options, connect_broker, connect_etcd, connect_stream, new_node,
};
use crate::cluster::Health;
use crate::config::{Config, StreamProtocol};
use crate::ports::Events as _;

/// The default port of the stream plugin.
const STREAM_PORT: u16 = 5552;
const STREAM_ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// An etcd that takes longer than this loses leases under load.
const SLOW: Duration = Duration::from_millis(50);
/// The number of requests for the median latency.
const QUESTIONS: usize = 9;
/// A database size close to etcd's default quota of 2 GiB, at which it stops accepting writes.
const LARGE: u64 = 1_600 * 1024 * 1024;

/// An etcd with fewer revisions can be too young to have been compacted.
const UNCOMPACTED: i64 = 10_000;

const RABBITMQ: &str = "start RabbitMQ 3.10 or later, or set BOB_QUEUE_URL";
const STREAM_ADVICE: &str = "it is a stream queue of RabbitMQ, over AMQP; the user needs the right to configure, write and read it";

const PUBLISH_ADVICE: &str = "until it takes messages, workers take no runs: `rabbitmqctl set_permissions` gives the user the right to write, and `rabbitmqctl list_alarms` shows whether the broker is low on memory or disk";

/// Tries each service once.
pub(super) async fn examine(config: &Config) -> Vec<Check> {
    let mut once = config.clone();
    once.connection.retry_attempts = 1;
    let (broker, plugin, etcd) = tokio::join!(broker(&once), stream_plugin(config), etcd(&once));
    broker.into_iter().chain([plugin]).chain(etcd).collect()
}

async fn broker(config: &Config) -> Vec<Check> {
    let (mut checks, stream) = tokio::join!(queues(config), stream(config));
    checks.push(stream);
    checks
}

async fn queues(config: &Config) -> Vec<Check> {
    let at = &config.queue.broker;
    let queue = match connect_broker(config, new_node()).await {
        Ok(queue) => queue,
        Err(cause) => {
            return vec![Check::fail("broker", cause.to_string(), remedy(&cause, RABBITMQ))];
        }
    };
    let mut checks = vec![match queue.probe().await {
        Ok(()) => Check::ok("broker", format!("{at} answers, has our queues, and takes messages")),
        Err(cause) => Check::fail("broker", cause.to_string(), PUBLISH_ADVICE),
    }];
    checks.push(match queue.dead_letters().await {
        Ok(0) => Check::ok("dead letters", format!("{} is empty", names::DEAD_LETTER_QUEUE)),
        Ok(count) => Check::warn(
            "dead letters",
            format!("{} has {count} messages", names::DEAD_LETTER_QUEUE),
            "each is a command that was rejected, or returned too often: `bob-runner events` shows \
             why as CommandRejected or CommandReturned",
        ),
        Err(cause) => Check::warn("dead letters", cause.to_string(), PUBLISH_ADVICE),
    });
    checks
}

async fn stream(config: &Config) -> Check {
    let options = amqp_options(config, new_node());
    let events = match connect_stream(&options).await {
        Ok(events) => events,
        Err(cause) => return Check::fail("stream", cause.to_string(), remedy(&cause, RABBITMQ)),
    };
    if let Err(cause) = events.probe().await {
        return Check::fail("stream", cause.to_string(), PUBLISH_ADVICE);
    }
    let name = &config.stream.name;
    match events.end().await {
        Ok(Some(end)) => Check::ok("stream", format!("{name} is there; its last message is {end}")),
        Ok(None) => Check::ok("stream", format!("{name} is there, and empty")),
        Err(cause) => Check::fail("stream", cause.to_string(), STREAM_ADVICE),
    }
}

/// The remedy for an unusable service. If a service rejects the connection, it is running and gives
/// the reason.
fn remedy(cause: &Unavailable, start: &'static str) -> &'static str {
    match cause.why {
        ServiceFault::Unreachable => start,
        ServiceFault::Refuses => "change what the message names; the service itself runs",
        ServiceFault::WrongKind => {
            "delete what the message names; workers declare it again at their start"
        }
    }
}

/// The worker does not need the plugin, but other readers of the stream can use it.
async fn stream_plugin(config: &Config) -> Check {
    let native = config
        .stream
        .server
        .as_ref()
        .filter(|server| server.protocol == StreamProtocol::Native)
        .map(|server| (server.broker.host.clone(), server.broker.port));
    let server = config.stream.server.as_ref().map(|server| &server.broker);
    let usual = server.unwrap_or(&config.queue.broker).host.clone();
    let (host, port) = native.unwrap_or((usual, STREAM_PORT));
    let connect = tokio::net::TcpStream::connect((host.as_str(), port));
    match tokio::time::timeout(STREAM_ANSWERS_WITHIN, connect).await {
        Ok(Ok(_)) => Check::ok("stream plugin", format!("{host}:{port} takes connections")),
        Ok(Err(_)) | Err(_) => Check::warn(
            "stream plugin",
            format!("nothing answers at {host}:{port}: the stream can be read over AMQP alone"),
            "`rabbitmq-plugins enable rabbitmq_stream`, where readers speak the stream protocol",
        ),
    }
}

async fn etcd(config: &Config) -> Vec<Check> {
    let etcd = match connect_etcd(config).await {
        Ok(etcd) => etcd,
        Err(cause) => {
            let advice = remedy(&cause, "start etcd 3.4 or later, or set BOB_STORAGE_URLS");
            return vec![Check::fail("etcd", cause.to_string(), advice)];
        }
    };
    let health = match etcd.health().await {
        Ok(health) => health,
        Err(cause) => {
            let advice = "the user needs the right to ask for the status; else nothing is wrong";
            return vec![Check::warn("etcd", cause.to_string(), advice)];
        }
    };
    let mut times = Vec::new();
    for _ in 0..QUESTIONS {
        let asked = Instant::now();
        if let Err(cause) = crate::ports::Store::get(&etcd, "bob.doctor").await {
            return vec![Check::fail(
                "etcd",
                cause.to_string(),
                "the user needs the right to read and write keys that begin with `bob.`",
            )];
        }
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    let mut checks = judge(&health, times[QUESTIONS / 2]);
    // A full database is reported by its own check.
    if !health.is_full
        && let Err(cause) = crate::ports::Store::accepts_writes(&etcd).await
    {
        checks.push(Check::fail(
            "etcd writes",
            cause.to_string(),
            "workers take nothing new until it accepts writes; the user needs the right to read and \
             write keys that begin with `bob.`",
        ));
    }
    checks
}

fn judge(health: &Health, latency: Duration) -> Vec<Check> {
    let millis = latency.as_secs_f64() * 1000.0;
    let found = format!("etcd {} answers in {millis:.1} ms", health.version);
    let mut checks = vec![if is_old(&health.version) {
        Check::fail("etcd", found, "use etcd 3.4 or later")
    } else if latency > SLOW {
        Check::warn(
            "etcd",
            found,
            "give it a faster disk, or bring it nearer: slow answers cost leases",
        )
    } else {
        Check::ok("etcd", found)
    }];
    let size = format!("its database has {} MiB", health.db_bytes >> 20);
    checks.push(if health.is_full {
        let advice =
            "compact and defragment it, then `etcdctl alarm disarm`; see --quota-backend-bytes";
        let found = format!("{size}, and it refuses writes: workers take nothing new");
        Check::fail("etcd size", found, advice)
    } else if health.db_bytes > LARGE {
        Check::warn(
            "etcd size",
            size,
            "set --auto-compaction-retention, or a higher --quota-backend-bytes",
        )
    } else {
        Check::ok("etcd size", size)
    });
    let history = format!("it is at revision {}", health.revision);
    checks.push(if health.is_compacted || health.revision < UNCOMPACTED {
        Check::ok("etcd history", history)
    } else {
        Check::warn(
            "etcd history",
            format!("{history} and has kept every one: nothing was ever compacted"),
            "start every member with --auto-compaction-mode=periodic \
             --auto-compaction-retention=1h, or it is full one day; a cluster that is younger than \
             its retention needs nothing",
        )
    });
    checks
}

/// Whether the version is before 3.4. An unparsable version counts as new.
fn is_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>());
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (3, 4),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn health(version: &str, db_bytes: u64, is_full: bool) -> Health {
        let (revision, is_compacted) = (50_000, true);
        Health { version: version.to_owned(), db_bytes, revision, is_compacted, is_full }
    }

    fn levels(health: &Health, millis: u64) -> Vec<Level> {
        judge(health, Duration::from_millis(millis)).iter().map(|check| check.level).collect()
    }

    #[test]
    fn the_remedy_for_a_service_that_refuses_is_not_to_start_it() {
        let gone = Unavailable::new("no answer");
        assert_eq!(remedy(&gone, RABBITMQ), RABBITMQ);
        for why in [ServiceFault::Refuses, ServiceFault::WrongKind] {
            let answers = Unavailable { why, ..gone.clone() };
            assert_ne!(remedy(&answers, RABBITMQ), RABBITMQ);
        }
    }

    #[test]
    fn an_etcd_is_judged_by_version_latency_and_size() {
        assert_eq!(levels(&health("3.5.16", 1 << 20, false), 1), [Level::Ok, Level::Ok, Level::Ok]);
        assert_eq!(
            levels(&health("3.3.25", 1 << 20, false), 1),
            [Level::Fail, Level::Ok, Level::Ok]
        );
        assert_eq!(
            levels(&health("3.4.23", 1 << 20, false), 90),
            [Level::Warn, Level::Ok, Level::Ok]
        );
        assert_eq!(
            levels(&health("3.6.0", 1700 << 20, false), 1),
            [Level::Ok, Level::Warn, Level::Ok]
        );
        assert_eq!(levels(&health("3.6.0", 2 << 30, true), 1), [Level::Ok, Level::Fail, Level::Ok]);
        assert!(!is_old("main"));
        let usual = health("3.5.16", 1 << 20, false);
        let kept = Health { is_compacted: false, ..usual };
        assert_eq!(levels(&kept, 1), [Level::Ok, Level::Ok, Level::Warn]);
        let young = Health { revision: 500, ..kept };
        assert_eq!(levels(&young, 1), [Level::Ok, Level::Ok, Level::Ok]);
    }
}
