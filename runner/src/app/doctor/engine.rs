//! Checks whether the container engine answers, and evaluates its answers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::check::Check;
use crate::app::engine::find;
use crate::config;
use crate::exec::podman::loses_changes;

/// The results for the engine.
#[derive(Debug)]
pub(super) struct EngineReport {
    pub(super) checks: Vec<Check>,
    /// The engine's info, if it answers.
    pub(super) info: Option<Value>,
}

/// The timeout of a request: podman inspects every mount before it answers.
const DEADLINE: Duration = Duration::from_secs(15);
/// The maximum size of a response, in bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

const ADVICE: &str = "start one as the user whose podman is to be used: `systemctl --user start podman.socket`, or `podman system service -t 0 unix:///path`, and set CONTAINER_ENGINE_URL";

/// Requests the engine's info and checks it.
pub(super) async fn examine(engine: &config::Engine) -> EngineReport {
    let found = match find(engine).await {
        Ok(found) => found,
        Err(cause) => {
            return EngineReport {
                checks: vec![Check::fail("engine", format!("{cause:#}"), ADVICE)],
                info: None,
            };
        }
    };
    let seen = ask(&found.url).await;
    if let Some(own) = found.own {
        own.end().await;
    }
    seen
}

async fn ask(url: &str) -> EngineReport {
    let asked = Instant::now();
    let ping = get(url, "/_ping").await;
    let took = asked.elapsed();
    let answer = match ping {
        Ok(_) => get(url, "/v4.0.0/libpod/info").await,
        Err(cause) => Err(cause),
    };
    let info = answer.and_then(|body| {
        serde_json::from_slice::<Value>(&body)
            .map_err(|cause| format!("it is not podman ({cause})"))
    });
    match info {
        Ok(info) => {
            let version = info.pointer("/version/Version").and_then(Value::as_str).unwrap_or("?");
            let found = format!("podman {version} at {url} answers in {} ms", took.as_millis());
            let mut checks = vec![Check::ok("engine", found)];
            checks.extend(judge(&info));
            EngineReport { checks, info: Some(info) }
        }
        Err(cause) => {
            let found = format!("the container engine at {url} does not answer: {cause}");
            EngineReport { checks: vec![Check::fail("engine", found, ADVICE)], info: None }
        }
    }
}

/// The checks that follow from the engine's info.
fn judge(info: &Value) -> Vec<Check> {
    vec![rootless(info), storage(info), limits(info), ids(info)]
}

fn rootless(info: &Value) -> Check {
    match info.pointer("/host/security/rootless").and_then(Value::as_bool) {
        Some(true) => Check::ok("rootless", "the engine runs as an ordinary user"),
        Some(false) => Check::warn(
            "rootless",
            "the engine runs as root: everyone who can submit pipelines can become root here",
            "point CONTAINER_ENGINE_URL at the socket of an ordinary user's podman",
        ),
        None => Check::warn(
            "rootless",
            "the engine does not say whether it is rootless",
            "check its version; 4.3 or later is known to work",
        ),
    }
}

fn storage(info: &Value) -> Check {
    let driver = info.pointer("/store/graphDriverName").and_then(Value::as_str).unwrap_or("?");
    let native = info.pointer("/store/graphStatus/Native Overlay Diff").and_then(Value::as_str);
    match (driver, native) {
        ("overlay", Some("true")) => Check::ok("storage", "overlay with native diff"),
        ("overlay", _) => Check::warn(
            "storage",
            "overlay without native diff: commits are several times slower",
            "use a kernel from 5.13 on and no mount_program in storage.conf",
        ),
        ("btrfs" | "zfs", _) => Check::ok("storage", format!("{driver} snapshots")),
        ("vfs", _) => Check::fail(
            "storage",
            loses_changes(Some(driver)).unwrap_or_default(),
            "set driver = \"overlay\" in storage.conf of that user, before there are images",
        ),
        _ => Check::warn(
            "storage",
            format!("driver {driver} copies whole images: each step costs time and disk"),
            "set driver = \"overlay\" in storage.conf of that user, before there are images",
        ),
    }
}

/// Why limits would be rejected here. `None` if they are enforced.
pub(super) fn limits_refused(info: &Value) -> Option<String> {
    if has_v1(info) {
        return Some("control groups of version 1 are not delegated to a rootless engine".into());
    }
    let controllers = info.pointer("/host/cgroupControllers").and_then(Value::as_array);
    let has = |name: &str| controllers.is_some_and(|all| all.iter().any(|one| one == name));
    let missing: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| !has(name)).collect();
    (!missing.is_empty())
        .then(|| format!("no cgroup controller is delegated for {}", missing.join(" and ")))
}

/// Whether a rootless engine finds control groups of version 1, as on hybrid hosts.
fn has_v1(info: &Value) -> bool {
    let version = info.pointer("/host/cgroupVersion").and_then(Value::as_str);
    let rootless = info.pointer("/host/security/rootless").and_then(Value::as_bool);
    version == Some("v1") && rootless == Some(true)
}

fn limits(info: &Value) -> Check {
    if has_v1(info) {
        return Check::fail(
            "cgroups",
            "v1 or hybrid: a rootless engine cannot create control groups here, so that containers do \
             not start",
            "boot with systemd.unified_cgroup_hierarchy=1; or set cgroups = \"disabled\" in \
             containers.conf of that user, which leaves steps without limits",
        );
    }
    let version = info.pointer("/host/cgroupVersion").and_then(Value::as_str).unwrap_or("?");
    match limits_refused(info) {
        None => Check::ok("cgroups", format!("{version}: limits of cpu and memory are enforced")),
        Some(why) => Check::warn(
            "cgroups",
            format!("{version}: {why}; pipelines with `quotas.limits` are refused"),
            "with systemd: Delegate=cpu cpuset io memory pids in user@.service.d, then log in again",
        ),
    }
}

/// How many ids a container needs for its users, besides root's.
const MANY_IDS: u64 = 65_536;

fn ids(info: &Value) -> Check {
    let sizes = |kind: &str| -> u64 {
        let mapped = info.pointer(&format!("/host/idMappings/{kind}")).and_then(Value::as_array);
        let size = |one: &Value| one.get("size").and_then(Value::as_u64);
        mapped.map_or(0, |all| all.iter().filter_map(size).sum())
    };
    let is_rootless = info.pointer("/host/security/rootless").and_then(Value::as_bool);
    if is_rootless != Some(true) {
        return Check::ok("user ids", "all of them: the engine is root's");
    }
    let few = sizes("uidmap").min(sizes("gidmap"));
    if few >= MANY_IDS {
        return Check::ok("user ids", format!("{few} subordinate users and groups"));
    }
    Check::warn(
        "user ids",
        format!("{few} subordinate users and groups: images whose files have many owners fail"),
        "add a line such as `user:100000:65536` to /etc/subuid and /etc/subgid, then `podman system migrate`",
    )
}

/// The directory of the engine's images.
pub(super) fn storage_dir(info: &Value) -> Option<PathBuf> {
    info.pointer("/store/graphRoot").and_then(Value::as_str).map(PathBuf::from)
}

/// Makes one request.
async fn get(url: &str, path: &str) -> Result<Bytes, String> {
    let asked = async {
        match url.strip_prefix("unix://") {
            Some(socket) => {
                let stream = tokio::net::UnixStream::connect(socket).await;
                exchange(stream.map_err(|cause| cause.to_string())?, "podman", path).await
            }
            None => {
                let host = url.split_once("://").map_or(url, |(_, host)| host);
                let stream = tokio::net::TcpStream::connect(host).await;
                exchange(stream.map_err(|cause| cause.to_string())?, host, path).await
            }
        }
    };
    tokio::time::timeout(DEADLINE, asked)
        .await
        .unwrap_or_else(|_elapsed| Err(format!("no answer within {} s", DEADLINE.as_secs())))
}

async fn exchange<S>(stream: S, host: &str, path: &str) -> Result<Bytes, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let said = |cause: hyper::Error| cause.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let request = Request::get(path)
        .header(hyper::header::HOST, host)
        .body(Empty::<Bytes>::new())
        .map_err(|cause| cause.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(said)?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|cause| cause.to_string())?.to_bytes();
        if status.is_success() { Ok(body) } else { Err(format!("it answers {path} with {status}")) }
    };
    // Drive the connection here while the response is awaited.
    let driven = async {
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        never = driven => never,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Level;
    use super::*;

    fn info() -> Value {
        json!({
            "host": {
                "cgroupControllers": ["cpu", "memory", "pids"],
                "cgroupVersion": "v2",
                "security": { "rootless": true },
                "idMappings": {
                    "uidmap": [{ "size": 1 }, { "size": 65536 }],
                    "gidmap": [{ "size": 1 }, { "size": 65536 }],
                },
            },
            "store": {
                "graphDriverName": "overlay",
                "graphStatus": { "Native Overlay Diff": "true" },
                "graphRoot": "/home/x/storage",
            },
        })
    }

    fn levels(info: &Value) -> Vec<(&'static str, Level)> {
        judge(info).into_iter().map(|check| (check.name, check.level)).collect()
    }

    #[test]
    fn a_well_configured_engine_has_no_findings() {
        assert!(judge(&info()).iter().all(|check| check.level == Level::Ok));
        assert_eq!(limits_refused(&info()), None);
        assert_eq!(storage_dir(&info()), Some(PathBuf::from("/home/x/storage")));
    }

    #[test]
    fn missing_parts_of_an_engine_are_named_with_a_remedy() {
        let lacking = json!({
            "host": {
                "cgroupControllers": [],
                "cgroupVersion": "v2",
                "security": { "rootless": true },
                "idMappings": { "uidmap": [{ "size": 1 }], "gidmap": [{ "size": 1 }] },
            },
            "store": { "graphDriverName": "vfs" },
        });
        let judged = levels(&lacking);
        assert!(judged.contains(&("storage", Level::Fail)), "vfs loses changes: {judged:?}");
        let warned = judged.into_iter().filter(|(_, level)| *level == Level::Warn);
        assert_eq!(warned.map(|(name, _)| name).collect::<Vec<_>>(), ["cgroups", "user ids"]);
        assert!(
            judge(&lacking).iter().all(|check| check.level == Level::Ok || check.advice.is_some())
        );
        assert_eq!(
            limits_refused(&lacking).as_deref(),
            Some("no cgroup controller is delegated for cpu and memory")
        );
    }

    #[test]
    fn a_rootless_engine_on_hybrid_control_groups_is_a_finding() {
        let mut hybrid = info();
        hybrid["host"]["cgroupVersion"] = json!("v1");
        assert!(levels(&hybrid).contains(&("cgroups", Level::Fail)));
        assert!(limits_refused(&hybrid).is_some());
        hybrid["host"]["security"]["rootless"] = json!(false);
        assert!(levels(&hybrid).contains(&("cgroups", Level::Ok)));
    }

    #[test]
    fn a_rootful_engine_gives_a_warning() {
        let mut of_root = info();
        of_root["host"]["security"]["rootless"] = json!(false);
        assert!(levels(&of_root).contains(&("rootless", Level::Warn)));
    }

    #[test]
    fn an_empty_response_does_not_panic() {
        assert!(judge(&json!({})).iter().all(|check| check.level != Level::Fail));
        assert!(judge(&json!([1])).len() == 4);
    }
}
