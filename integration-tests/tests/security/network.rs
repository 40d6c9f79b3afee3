//! Networks beyond the step's container: only those that the operator allows.

use protocol::pipeline::NetworkGrant;
use runner::exec::access::Granted;
use runner::ports::StepSpec;
use serde_json::{Value, json};

use crate::adapters::adapters;
use crate::place::TestEnv;

#[tokio::test]
async fn no_option_of_a_step_reaches_the_network_helper_or_the_host() {
    let written = tempfile::tempdir().unwrap();
    let pcap = written.path().join("pcap");
    let beyond = [
        format!("pasta:--pcap,{}", pcap.display()),
        format!("pasta:--pcap={}", pcap.display()),
        format!("pasta:-l{}", pcap.display()),
        "slirp4netns:allow_host_loopback=true".to_owned(),
        "slirp4netns:outbound_addr=lo".to_owned(),
        "pasta:-T,2379".to_owned(),
        "host".to_owned(),
        "somebodys".to_owned(),
        "container:other".to_owned(),
        "ns:/proc/1/ns/net".to_owned(),
        "bridge:ip=10.88.0.3".to_owned(),
    ];
    for adapter in adapters(&Granted::default()) {
        for network in &beyond {
            let job = adapter.job("true", json!({}));
            let why = adapter.refuses(&StepSpec { network: Some(network.clone()), ..job }).await;
            assert!(why.contains(&format!("{network:?}")), "{}: {why}", adapter.name);
        }
        assert!(!pcap.exists(), "{}", adapter.name);
        let job = adapter.job("ls /sys/class/net", json!({}));
        let none = StepSpec { network: Some("none".into()), ..job };
        assert_eq!(adapter.passes(&none).await.trim(), "lo", "{}", adapter.name);
        adapter.end().await;
    }
}

#[tokio::test]
async fn steps_can_use_a_network_that_the_operator_names() {
    let granted = Granted { networks: vec![NetworkGrant::Host], ..Granted::default() };
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    for adapter in adapters(&granted) {
        let job = adapter.job("readlink /proc/self/ns/net", json!({}));
        let job = StepSpec { network: Some("host".into()), ..job };
        assert_eq!(adapter.passes(&job).await.trim(), host.to_str().unwrap(), "{}", adapter.name);
        let named = StepSpec { network: Some("somebodys".into()), ..job };
        assert!(adapter.refuses(&named).await.contains("BOB_NETWORKS"), "{}", adapter.name);
        adapter.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_rejects_an_invalid_start_before_any_step_runs() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[("BOB_NETWORKS", "")]).await;
    for (name, network) in [("host", "host"), ("pcap", "pasta:--pcap,/tmp/pcap")] {
        let run = place.run(name);
        let steps = json!([{ "cmd": "true" }, { "cmd": "true", "network": network }]);
        place.start(&run, &place.pipeline(name, &steps)).await;
        let record = place.keys.settled(&run).await;
        assert_eq!((&record["status"], &record["cause"]), (&json!("failed"), &json!("rejected")));
        let message = record["message"].as_str().unwrap();
        assert!(message.contains(network) && message.contains("BOB_NETWORK"), "{message}");
        let is_started = |step: &Value| step.get("started-at").is_some();
        assert!(!record["steps"].as_array().unwrap().iter().any(is_started), "{record}");
    }
    server.end().await;
}
