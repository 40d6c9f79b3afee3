//! The worker over RabbitMQ and etcd, with scripted steps. Runs the same suite as the embedded
//! adapters.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use runner::cluster::{AmqpEvents, AmqpOptions, AmqpQueue, Etcd};
use runner::ports::{Executor, NoSecrets, Ports};
use runner::worker::RenderInline;
use runner::{host, transfer};
use test_support::prefixed::PrefixedStore;
use test_support::scripted::Scripted;
use test_support::services::{BROKER, STORE, Services, Vhost};
use test_support::worker_suite::{
    MakePorts, Rig, admission, commands, hard, large, later, marks, rerun, runs, takeover,
};

/// A virtual host per test on the shared broker, and a key prefix in the shared etcd.
async fn rig() -> Option<(Rig, Arc<Vhost>, Services)> {
    let needed: Vec<&str> = BROKER.iter().chain(STORE).copied().collect();
    let services = Services::from_env(&needed)?;
    let vhost = Arc::new(services.vhost().await);
    let executor: Arc<dyn Executor> = Arc::new(Scripted::default());
    let (of_rig, here) = (services.clone(), Arc::clone(&vhost));
    let prefix = format!("t-{}/", uuid::Uuid::new_v4());
    let make: MakePorts = Arc::new(move |node| {
        let amqp = AmqpOptions { node: node.clone(), ..of_rig.amqp(&here) };
        let (etcd, executor) = (of_rig.etcd(), Arc::clone(&executor));
        let (spill_dir, prefix) = (here.spill.path().to_owned(), prefix.clone());
        Box::pin(async move {
            let http = transfer::Options {
                policy: runner::egress::Policy::unrestricted(),
                spill_dir,
                spill_bytes: 1 << 20,
            };
            Ports {
                queue: Arc::new(AmqpQueue::connect(&amqp).await.unwrap()),
                store: Arc::new(PrefixedStore::new(
                    Arc::new(Etcd::connect(&etcd).await.unwrap()),
                    prefix,
                )),
                events: Arc::new(AmqpEvents::connect(&amqp).await.unwrap()),
                executor,
                transfer: Arc::new(transfer::Http::new(http).unwrap()),
                host: Arc::new(host::Linux::default()),
                renderer: Arc::new(RenderInline),
                secrets: Arc::new(NoSecrets),
                outputs: None,
            }
        })
    });
    Some((Rig::new(make).await, vhost, services))
}

macro_rules! make_tests {
    ($($room:ident :: $row:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $row() {
                let Some((rig, _vhost, _services)) = rig().await else { return };
                $room::$row(rig).await;
            }
        )*
    };
}

test_support::for_each_row!(make_tests);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_are_dead_lettered_with_an_event() {
    let Some((rig, vhost, services)) = rig().await else { return };
    let options = services.amqp(&vhost);
    let uri = format!(
        "{}/{}",
        options
            .url
            .replace("://", &format!("://{}:{}@", options.user, options.password))
            .trim_end_matches(&format!("/{}", vhost.name)),
        vhost.name
    );
    let connection =
        lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let dead = async || loop {
        let got = channel
            .basic_get("bob.dlq".into(), lapin::options::BasicGetOptions { no_ack: true })
            .await
            .unwrap();
        if let Some(letter) = got {
            return letter.delivery.data;
        }
        tokio::task::yield_now().await;
    };
    commands::what_cannot_be_understood_is_dead_lettered_and_told(rig, dead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_runs_on_two_workers_each_end_once() {
    let Some((rig, _vhost, _services)) = rig().await else { return };
    runs::many_runs_on_two_workers_end_once_each(rig, 200).await;
}
